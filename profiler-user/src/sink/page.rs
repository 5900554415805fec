//! Pieces of text to a page for a terminal: styled where asked, and never able to command the terminal.
//!
//! Names of functions, files and processes are the target's words. Everything that goes onto a page
//! passes one door, which takes the power out of control characters.

use std::fmt::Write;

/// Whether a page may use escape sequences of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    On,
    Off,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Dim,
    Red,
    Yellow,
}

impl Style {
    /// Parameters of the SGR sequence (ECMA-48, 8.3.117).
    fn parameters(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Red => Some("1;31"),
            Self::Yellow => Some("1;33"),
        }
    }
}

/// Width of the labels at the left, with the space around them.
const LABEL_COLUMNS: usize = 12;

/// Text in the making.
#[derive(Debug)]
pub struct Page {
    text: String,
    colour: Colour,
}

impl Page {
    pub fn new(colour: Colour) -> Self {
        Self { text: String::new(), colour }
    }

    /// Adds text to the current line.
    pub fn put(&mut self, style: Style, text: &str) -> &mut Self {
        let is_styled = self.colour == Colour::On && !text.is_empty();
        let parameters = style.parameters().filter(|_| is_styled);
        if let Some(parameters) = parameters {
            self.text.push_str("\x1b[");
            self.text.push_str(parameters);
            self.text.push('m');
        }
        for character in text.chars() {
            if is_command(character) {
                self.text.extend(character.escape_default());
            } else {
                self.text.push(character);
            }
        }
        if parameters.is_some() {
            self.text.push_str("\x1b[0m");
        }
        self
    }

    /// Begins a line with a label; an empty one continues the line above.
    pub fn label(&mut self, label: &str) -> &mut Self {
        let column = LABEL_COLUMNS - 2;
        // Writing to a String does not fail.
        let _ = write!(self.text, "  {label:<column$}");
        self
    }

    pub fn end_line(&mut self) {
        let kept = self.text.trim_end_matches(' ').len();
        self.text.truncate(kept);
        self.text.push('\n');
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

/// Characters that move a cursor, start an escape sequence, or turn the order of what follows.
fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::{Colour, Page, Style};

    fn page(colour: Colour, text: &str) -> String {
        let mut page = Page::new(colour);
        page.label("name").put(Style::Dim, text).end_line();
        page.into_text()
    }

    /// Colour is used where it was asked for, and nowhere else.
    #[test]
    fn colour_when_told() {
        assert_eq!(page(Colour::Off, "f"), "  name      f\n");
        assert_eq!(page(Colour::On, "f"), "  name      \u{1b}[2mf\u{1b}[0m\n");
    }

    /// A name cannot command the terminal, end a line, or turn the text around; letters of any script stay.
    #[test]
    fn hostile_text() {
        let hostile = "a\u{1b}[2J\r\nb\u{9b}\u{202e}";
        assert_eq!(page(Colour::Off, hostile), "  name      a\\u{1b}[2J\\r\\nb\\u{9b}\\u{202e}\n");
        assert_eq!(page(Colour::Off, "Größe 大きさ"), "  name      Größe 大きさ\n");
    }

    /// Nothing is left hanging at a line's end.
    #[test]
    fn no_trailing_blanks() {
        assert_eq!(page(Colour::Off, "f   "), "  name      f\n");
    }
}
