//! Rust source without its comments and literals: the words that are really code.

/// The source with everything that is not code blanked out; lines stay where they were.
#[derive(Debug)]
pub struct Code(String);

impl Code {
    pub fn of(source: &str) -> Self {
        let mut rest = source;
        let mut code = String::with_capacity(source.len());
        while let Some(first) = rest.chars().next() {
            let skipped = comment(rest).or_else(|| literal(rest, code.chars().last()));
            match skipped {
                Some(length) => {
                    let (blank, after) = rest.split_at(length);
                    code.extend(blank.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                    rest = after;
                }
                None => {
                    code.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        Self(code)
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// The identifiers and keywords of each line, with the line's number.
    pub fn words(&self) -> impl Iterator<Item = (usize, Vec<&str>)> {
        self.0.lines().enumerate().map(|(line, text)| {
            let words = text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty());
            (line + 1, words.collect())
        })
    }
}

const fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The length of the comment at the beginning of the text, if one is there.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    // Comments within comments are not expected; rustfmt writes neither kind.
    text.starts_with("/*").then(|| text.find("*/").map_or(text.len(), |end| end + 2))
}

/// The length of the text or character literal at the beginning, if one is there.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    if text.starts_with('"') {
        return Some(quoted(text, '"'));
    }
    // A lifetime has a quote as well, but none after its first character.
    if text.starts_with('\'') {
        let mut characters = text.char_indices().skip(1);
        let (_, first) = characters.next()?;
        let (after, second) = characters.next()?;
        return match (first, second) {
            ('\\', _) => Some(quoted(text, '\'')),
            (_, '\'') => Some(after + 1),
            _ => None,
        };
    }
    if before.is_some_and(is_word) {
        return None;
    }
    let hashes = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let count = hashes.len() - hashes.trim_start_matches('#').len();
    if !hashes[count..].starts_with('"') {
        return None;
    }
    let opening = text.len() - hashes.len() + count + 1;
    let closing = format!("\"{}", "#".repeat(count));
    Some(text[opening..].find(&closing).map_or(text.len(), |end| opening + end + closing.len()))
}

/// The length of a literal that begins and ends with this quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (position, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return position + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::Code;

    fn words(source: &str) -> Vec<String> {
        let code = Code::of(source);
        code.words().flat_map(|(_, words)| words).map(str::to_owned).collect()
    }

    /// Comments of both kinds are no code.
    #[test]
    fn comments() {
        assert_eq!(words("a // b\nc /* d\ne */ f"), ["a", "c", "f"]);
    }

    /// Texts are no code, with escaped quotes, raw, and as bytes.
    #[test]
    fn texts() {
        assert_eq!(words(r##"a("b \" c", r#"d " e"#, br"f", b"g")h"##), ["a", "b", "h"]);
    }

    /// Characters are no code; lifetimes are, and names that end in r.
    #[test]
    fn characters_and_lifetimes() {
        assert_eq!(words("a('\"', '\\'', 'b')"), ["a"]);
        assert_eq!(words("fn f<'a>(x: &'a str)"), ["fn", "f", "a", "x", "a", "str"]);
        assert_eq!(words("for\"x\""), ["for"]);
    }

    /// Words keep their line.
    #[test]
    fn lines() {
        let code = Code::of("\"a\nb\"\nc");
        let lines: Vec<_> = code.words().filter(|(_, words)| !words.is_empty()).collect();
        assert_eq!(lines, [(3, vec!["c"])]);
    }
}
