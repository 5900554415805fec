//! The target's words to text that is safe to show, and short enough to repeat.

/// Ends a text that was cut.
pub const MARK: char = '…';

/// The text without its power over a terminal: what would move a cursor, start an escape sequence, end a line or
/// turn the order of what follows is escaped as in Rust, `\u{1b}`.
pub fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for character in text.chars() {
        if is_command(character) {
            printed.extend(character.escape_default());
        } else {
            printed.push(character);
        }
    }
    printed
}

/// C0, C1 and DEL; separators of lines and paragraphs; marks, embeddings, overrides and isolates of direction
/// (UAX #9), and the zero-width no-break space.
fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// Bytes that a character takes in JSON, within quotes.
pub fn json_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

/// Cuts a text that takes more bytes in JSON than these, and marks that it was; returns how many of its own bytes
/// are gone.
pub fn cut(text: &mut String, most_bytes: usize) -> usize {
    // No character takes more than six times its own bytes.
    if text.len() <= most_bytes / 6 {
        return 0;
    }
    let room = most_bytes.saturating_sub(MARK.len_utf8());
    let (mut bytes, mut end) = (0, None);
    for (at, character) in text.char_indices() {
        bytes += json_bytes(character);
        if bytes > room && end.is_none() {
            end = Some(at);
        }
        if bytes > most_bytes {
            break;
        }
    }
    let Some(end) = end.filter(|_| bytes > most_bytes) else { return 0 };
    let left_out = text.len() - end;
    text.truncate(end);
    text.push(MARK);
    left_out
}

#[cfg(test)]
mod tests {
    use super::{cut, printable};
    use crate::hostile;

    /// Nothing that commands is left, whatever is in it; letters of any script stay.
    #[test]
    fn no_commands() {
        let every = (0..=0x9f).chain([0x61c, 0x200e, 0x200f, 0x2028, 0x2029, 0xfeff]);
        let every = every.chain(0x202a..=0x202e).chain(0x2066..=0x2069).filter_map(char::from_u32);
        let text: String = every.collect();
        let printed = printable(&text);
        assert!(printed.chars().all(|it| it == ' ' || it.is_ascii_graphic()), "{printed:?}");
        assert_eq!(printable("a\u{1b}[2J\u{9b}\u{202e}"), r"a\u{1b}[2J\u{9b}\u{202e}");
        assert_eq!(printable("Größe 大きさ \\ \""), "Größe 大きさ \\ \"");
    }

    /// A text that fits stays; one that does not is cut between characters, and takes no more in JSON.
    #[test]
    fn cuts() {
        let mut text = "äöü".to_owned();
        assert_eq!((cut(&mut text, 6), text.as_str()), (0, "äöü"));
        text.push('x');
        assert_eq!((cut(&mut text, 6), text.as_str()), (5, "ä…"));
        hostile::rounds(500, |random| {
            let length = random.below(60);
            let original = String::from_utf8_lossy(&random.bytes(length)).into_owned();
            let (mut text, most) = (original.clone(), 3 + random.below(60));
            let left_out = cut(&mut text, most);
            let bytes = serde_json::to_string(&text).unwrap().len() - 2;
            assert!(bytes <= most, "{bytes} of {most}: {text:?}");
            let is_whole = serde_json::to_string(&original).unwrap().len() - 2 <= most;
            assert_eq!((left_out == 0, text == original), (is_whole, is_whole), "{original:?}");
        });
    }
}
