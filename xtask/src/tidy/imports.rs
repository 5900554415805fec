//! The paths that a source file names outside its tests: what it imports, and what it names in place.

use super::code::Code;

/// A path of modules and the item in them, first name first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    pub line: usize,
    pub path: Vec<String>,
    /// The name that it has in this file; none of a path that is named in place, or of all of a module.
    pub name: Option<String>,
    /// Others can import it from this file.
    pub is_public: bool,
}

/// What a file names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imports {
    pub all: Vec<Import>,
    /// The modules that have files of their own below this one.
    pub modules: Vec<String>,
    /// The words of the file outside its imports.
    pub words: Vec<String>,
}

/// A word, `::`, or another character; and its line.
type Token<'a> = (usize, &'a str);

impl Imports {
    pub fn of(source: &str) -> Self {
        let code = Code::of(source);
        let tokens = without_tests(&tokens(code.text()));
        let mut found = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let (past, rest) = tokens.split_at(at);
            at += match rest {
                [(_, "use"), (_, after), ..] if *after != "<" => found.import(past, rest),
                [(_, "mod"), (_, name), (_, ";"), ..] => {
                    found.modules.push((*name).to_owned());
                    3
                }
                _ => found.in_place(past, rest),
            };
        }
        found
    }

    /// What follows `use`, up to its `;`. Returns how many tokens that is.
    fn import(&mut self, past: &[Token<'_>], rest: &[Token<'_>]) -> usize {
        let is_public = matches!(past.last(), Some((_, "pub" | ")")));
        let end = rest.iter().position(|token| token.1 == ";").unwrap_or(rest.len());
        tree(&rest[1..end], &[], is_public, &mut self.all);
        end
    }

    /// The token at the beginning, and the path that begins with it.
    fn in_place(&mut self, past: &[Token<'_>], rest: &[Token<'_>]) -> usize {
        let (line, word) = rest[0];
        if !is_name(word) {
            return 1;
        }
        self.words.push(word.to_owned());
        let goes_on = matches!(past, [.., (_, "." | "::")] | [.., (_, "("), (_, "in")]);
        let path = path(rest);
        if path.len() > 1 && !goes_on {
            let path = path.iter().map(|name| (*name).to_owned()).collect();
            self.all.push(Import { line, path, name: None, is_public: false });
        }
        1
    }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for (line, mut rest) in text.lines().enumerate() {
        rest = rest.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if is_part(first) => rest.find(|c| !is_part(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            found.push((line + 1, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    found
}

const fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The tokens outside items that only a test build has.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let begins = tokens[at..].iter().take(TEST.len()).map(|token| token.1).eq(TEST);
        if begins {
            at += TEST.len();
            at += item(&tokens[at..]);
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

/// How many tokens the item at the beginning has: up to its `;`, or to the end of its body.
fn item(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (position, (_, text)) in tokens.iter().enumerate() {
        match *text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && matches!(*text, ";" | "}") {
            return position + 1;
        }
    }
    tokens.len()
}

/// The names at the beginning that `::` joins.
fn path<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let mut names = vec![tokens[0].1];
    for pair in tokens[1..].chunks_exact(2) {
        if pair[0].1 != "::" || !is_name(pair[1].1) {
            break;
        }
        names.push(pair[1].1);
    }
    names
}

/// The imports of what follows `use`, or of one branch of it.
fn tree(tokens: &[Token<'_>], above: &[String], is_public: bool, found: &mut Vec<Import>) {
    let Some(&(line, _)) = tokens.first() else { return };
    let mut path = above.to_vec();
    let mut name = None;
    let mut at = 0;
    while let Some(&(_, text)) = tokens.get(at) {
        match text {
            "::" => {}
            "*" => name = Some(None),
            "as" => name = tokens.get(at + 1).map(|token| Some(token.1.to_owned())),
            "self" if !path.is_empty() => {}
            "{" => {
                for branch in branches(&tokens[at + 1..tokens.len() - 1]) {
                    tree(branch, &path, is_public, found);
                }
                return;
            }
            _ if name.is_none() => path.push(text.to_owned()),
            _ => {}
        }
        at += 1;
    }
    let name = name.unwrap_or_else(|| path.last().cloned());
    found.push(Import { line, path, name, is_public });
}

/// What stands between the commas, outside inner braces.
fn branches<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0_usize;
    let parts = tokens.split(|(_, text)| {
        match *text {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *text == ","
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::Imports;

    fn paths(source: &str) -> Vec<(usize, String, Option<String>)> {
        let all = Imports::of(source).all.into_iter();
        all.map(|import| (import.line, import.path.join("::"), import.name)).collect()
    }

    fn named(line: usize, path: &str, name: &str) -> (usize, String, Option<String>) {
        (line, path.to_owned(), Some(name.to_owned()))
    }

    /// Each branch of an import is one, on its own line and by its own name.
    #[test]
    fn branches() {
        let text = "use crate::{\n    a::{self, B},\n    c::D as E,\n};\nuse super::f;\n";
        let expected = [
            named(2, "crate::a", "a"),
            named(2, "crate::a::B", "B"),
            named(3, "crate::c::D", "E"),
            named(5, "super::f", "f"),
        ];
        assert_eq!(paths(text), expected);
        assert_eq!(paths("use a::b::*;"), [(1, "a::b".to_owned(), None)]);
    }

    /// A path in place is one as well; a method, a single name and a visibility are none.
    #[test]
    fn in_place() {
        let text =
            "pub(in crate::a) fn f() -> impl Sized + use<> {\n    crate::b::c(x.d::<e>(), g)\n}\n";
        assert_eq!(paths(text), [(2, "crate::b::c".to_owned(), None)]);
    }

    /// What only a test build has is passed over, and nothing after it.
    #[test]
    fn tests_are_none() {
        let text = "#[cfg(test)]\nuse a::{b, c};\n#[cfg(test)]\npub fn f(x: [u8; 2]) { d::e() }\nuse g::h;\n\
                    #[cfg(test)]\nmod tests {\n    use super::i;\n}\n";
        assert_eq!(paths(text), [named(5, "g::h", "h")]);
    }
}
