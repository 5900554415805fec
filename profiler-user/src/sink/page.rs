//! Pieces of text to a page for a terminal: styled where asked, and never able to command the terminal.
//!
//! Names of functions, files and processes are the target's words. Everything that goes onto a page
//! passes one door, which takes the power out of control characters. Lines are broken between words at the
//! terminal's width, and go on below where they began.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::report::printable::printable;

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
    /// The frame to look at first.
    Culprit,
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
            Self::Culprit => Some("1;36"),
        }
    }
}

/// Columns of a terminal whose width is not known.
pub const USUAL_COLUMNS: usize = 80;

/// Narrower ones are treated as if they had so many: words would stand one below the other.
const LEAST_COLUMNS: usize = 40;

/// Width of the labels at the left, with the space around them.
pub const LABEL_COLUMNS: usize = 12;

/// What stands for text that is left out.
const CUT: char = '…';

/// Text in the making.
#[derive(Debug)]
pub struct Page {
    text: String,
    colour: Colour,
    columns: usize,
    /// Pieces of the current line.
    line: Vec<(Style, String)>,
}

impl Page {
    pub fn new(colour: Colour, columns: usize) -> Self {
        let columns = columns.max(LEAST_COLUMNS);
        Self { text: String::new(), colour, columns, line: Vec::new() }
    }

    /// An empty page that looks the same.
    pub fn another(&self) -> Self {
        Self::new(self.colour, self.columns)
    }

    /// Columns beside a label.
    pub fn room(&self) -> usize {
        self.columns - LABEL_COLUMNS
    }

    /// Adds text to the current line.
    pub fn put(&mut self, style: Style, text: &str) -> &mut Self {
        self.line.push((style, printable(text)));
        self
    }

    /// Begins a line with a label; an empty one continues the line above.
    pub fn label(&mut self, label: &str) -> &mut Self {
        let column = LABEL_COLUMNS - 2;
        self.put(Style::Plain, &format!("  {label:<column$}"))
    }

    /// Ends the line, and breaks it between words where it is too long.
    pub fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let mut rows = Rows::new(self);
        for (style, text) in &line {
            for (index, part) in text.split(' ').enumerate() {
                if index > 0 {
                    rows.space();
                }
                rows.part(*style, part);
            }
        }
        rows.end();
    }

    /// Ends the line, and cuts off what is too long: code and frames are found by their beginning.
    pub fn cut_line(&mut self) {
        let whole: usize = self.line.iter().map(|(_, text)| text.width()).sum();
        if whole > self.columns {
            let mut left = self.columns - 1;
            for index in 0..self.line.len() {
                let (_, text) = &mut self.line[index];
                let kept = fitting(text, left);
                if kept < text.len() {
                    text.truncate(kept);
                    text.push(CUT);
                    self.line.truncate(index + 1);
                    break;
                }
                left -= text.width();
            }
        }
        self.end_line();
    }

    /// A line of nothing.
    pub fn blank_line(&mut self) {
        self.text.push('\n');
    }

    /// Adds what another page has.
    pub fn append(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

/// Bytes of the text's beginning that take at most so many columns.
fn fitting(text: &str, columns: usize) -> usize {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        taken += character.width().unwrap_or(0);
        if taken > columns {
            return at;
        }
    }
    text.len()
}

/// A file and line so that they fit: of a long path the folders at its beginning are left out.
pub fn shortened(path: &str, columns: usize) -> String {
    if path.width() <= columns || !path.contains('/') {
        return path.to_owned();
    }
    let mut rest = path;
    while let Some((_, below)) = rest.split_once('/') {
        rest = below;
        if !rest.is_empty() && rest.width() + 2 <= columns {
            break;
        }
    }
    format!("{CUT}/{rest}")
}

/// One line on its way to the rows of a terminal.
#[derive(Debug)]
struct Rows<'a> {
    text: &'a mut String,
    colour: Colour,
    columns: usize,
    /// Columns of the present row that are taken.
    taken: usize,
    /// Spaces before the present word.
    spaces: usize,
    word: Vec<(Style, &'a str)>,
    style: Style,
}

impl<'a> Rows<'a> {
    fn new(page: &'a mut Page) -> Self {
        let Page { text, colour, columns, .. } = page;
        Self {
            text,
            colour: *colour,
            columns: *columns,
            taken: 0,
            spaces: 0,
            word: Vec::new(),
            style: Style::Plain,
        }
    }

    /// A part of a word: styles may change inside of one.
    fn part(&mut self, style: Style, part: &'a str) {
        if !part.is_empty() {
            self.word.push((style, part));
        }
    }

    fn space(&mut self) {
        self.place();
        self.spaces += 1;
    }

    /// Puts the word where it fits.
    fn place(&mut self) {
        let word = std::mem::take(&mut self.word);
        if word.is_empty() {
            return;
        }
        let columns: usize = word.iter().map(|(_, part)| part.width()).sum();
        let at = self.taken + self.spaces;
        // Whatever does not fit into a row of its own is the terminal's to break.
        if at > LABEL_COLUMNS && at + columns > self.columns {
            self.turn_to(Style::Plain);
            self.text.push('\n');
            self.taken = 0;
            self.spaces = LABEL_COLUMNS;
        }
        let first = word.first().map_or(Style::Plain, |(style, _)| *style);
        if first != self.style {
            self.turn_to(Style::Plain);
        }
        self.text.extend(std::iter::repeat_n(' ', self.spaces));
        self.taken += self.spaces + columns;
        self.spaces = 0;
        for (style, part) in word {
            self.turn_to(style);
            self.text.push_str(part);
        }
    }

    fn turn_to(&mut self, style: Style) {
        if style == self.style || self.colour == Colour::Off {
            return;
        }
        if self.style != Style::Plain {
            self.text.push_str("\x1b[0m");
        }
        if let Some(parameters) = style.parameters() {
            self.text.push_str("\x1b[");
            self.text.push_str(parameters);
            self.text.push('m');
        }
        self.style = style;
    }

    fn end(mut self) {
        self.place();
        self.turn_to(Style::Plain);
        self.text.push('\n');
    }
}

/// A part of a block.
#[derive(Debug)]
pub struct PagePart {
    pub text: String,
    /// It is about this moment, and shown each time; all others are shown once for each stall.
    pub is_of_now: bool,
}

#[cfg(test)]
mod tests {
    use super::{Colour, Page, Style, shortened};

    fn page(colour: Colour, text: &str) -> String {
        let mut page = Page::new(colour, 80);
        page.label("name").put(Style::Dim, text).end_line();
        page.into_text()
    }

    /// Colour is used where it was asked for, and nowhere else.
    #[test]
    fn colour_when_told() {
        assert_eq!(page(Colour::Off, "f g"), "  name      f g\n");
        assert_eq!(page(Colour::On, "f g"), "  name      \u{1b}[2mf g\u{1b}[0m\n");
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

    /// Lines are broken between words, also where a word has several styles, and go on below their beginning;
    /// a word that is too long for any row stands whole.
    #[test]
    fn broken_between_words() {
        let rows = |colour, pieces: &[(Style, &str)]| {
            let mut page = Page::new(colour, 40);
            page.label("name");
            for (style, text) in pieces {
                page.put(*style, text);
            }
            page.end_line();
            page.into_text()
        };
        let pieces = [(Style::Plain, "one two three four fivess si"), (Style::Bold, "x seven")];
        let expected = "  name      one two three four fivess\n            six seven\n";
        assert_eq!(rows(Colour::Off, &pieces), expected);
        let coloured = rows(Colour::On, &pieces);
        assert!(coloured.ends_with("\n            si\u{1b}[1mx seven\u{1b}[0m\n"), "{coloured:?}");
        let long = "x".repeat(50);
        let text = rows(Colour::Off, &[(Style::Plain, &format!("a {long} b"))]);
        assert_eq!(text, format!("  name      a\n            {long}\n            b\n"));
        // A wide character takes two columns.
        let wide = rows(Colour::Off, &[(Style::Plain, &format!("{} b", "大".repeat(13)))]);
        assert_eq!(wide.lines().count(), 1, "{wide}");
        let wide = rows(Colour::Off, &[(Style::Plain, &format!("{} b", "大".repeat(14)))]);
        assert_eq!(wide.lines().count(), 2, "{wide}");
    }

    /// What must stay in one row is cut, with a sign that it was.
    #[test]
    fn cut_to_one_row() {
        let mut page = Page::new(Colour::Off, 40);
        page.label("code").put(Style::Plain, &"x".repeat(40)).put(Style::Dim, "y").cut_line();
        page.label("").put(Style::Plain, &"x".repeat(28)).cut_line();
        page.label("")
            .put(Style::Plain, &"x".repeat(20))
            .put(Style::Dim, &"y".repeat(9))
            .cut_line();
        let text = page.into_text();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], format!("  code      {}…", "x".repeat(27)));
        assert_eq!(rows[1], format!("            {}", "x".repeat(28)));
        assert_eq!(rows[2], format!("            {}{}…", "x".repeat(20), "y".repeat(7)));
    }

    /// Of a long path its end is kept.
    #[test]
    fn paths_that_fit() {
        assert_eq!(shortened("/srv/shop/app.py:18", 19), "/srv/shop/app.py:18");
        assert_eq!(shortened("/srv/shop/app.py:18", 18), "…/shop/app.py:18");
        assert_eq!(shortened("/srv/shop/app.py:18", 3), "…/app.py:18");
        assert_eq!(shortened("a_long_name", 3), "a_long_name");
    }
}
