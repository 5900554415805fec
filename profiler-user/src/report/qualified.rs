//! The demangled text of a native function to its qualified name, without what it returns and takes.

/// The qualified name of a function inside of its demangled text.
#[derive(Debug, PartialEq, Eq)]
pub struct Qualified<'a> {
    /// From its first namespace on, without the type that it returns.
    pub name: &'a str,
    /// The same without parameters and what follows them.
    pub bare: &'a str,
    /// It has parameters, as C++ has.
    pub is_cpp: bool,
}

impl<'a> Qualified<'a> {
    /// `void std::__introsort_loop<…>(…)` returns something first, `std::enable_if<…>::type` may be what it
    /// returns, and `rank()::{lambda(auto:1)#1}::operator()(…)` has the parameters of whatever surrounds it.
    pub fn of(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        let mut open: Vec<u8> = Vec::new();
        let (mut start, mut at) = (0, 0);
        while let Some(&byte) = bytes.get(at) {
            let is_outside = open.is_empty();
            let token = text.get(start..at).unwrap_or_default();
            if is_outside && is_operator(token) {
                at += operator_length(bytes.get(at..).unwrap_or_default());
                if bytes.get(at).is_none() {
                    break;
                }
                open.push(b'!');
                continue;
            }
            // What follows an operator's sign is as any other text.
            if open.last() == Some(&b'!') {
                open.pop();
                if byte == b'(' {
                    return Self::cpp(text, start, at);
                }
            }
            match byte {
                b' ' if is_outside => start = at + 1,
                b'(' if is_outside && is_parameters(text, start, at) => {
                    return Self::cpp(text, start, at);
                }
                b'(' | b'<' | b'[' | b'{' => open.push(byte),
                b'>' if at > 0 && bytes.get(at - 1) == Some(&b'-') => {}
                b'>' if open.last() == Some(&b'<') => drop(open.pop()),
                b')' | b']' | b'}' => close(&mut open, byte),
                _ => {}
            }
            at += 1;
        }
        let name = text.get(start..).unwrap_or_default();
        Self { name, bare: name, is_cpp: false }
    }

    fn cpp(text: &'a str, start: usize, parameters: usize) -> Self {
        let name = text.get(start..).unwrap_or_default();
        let bare = text.get(start..parameters).unwrap_or_default();
        Self { name, bare, is_cpp: true }
    }
}

/// Whether the text that ends here is that of an operator whose sign follows.
fn is_operator(token: &str) -> bool {
    token.strip_suffix("operator").is_some_and(|before| before.is_empty() || before.ends_with("::"))
}

/// How long an operator's sign is: `()`, `<<=`, ` new[]`, ` bool`.
fn operator_length(rest: &[u8]) -> usize {
    match rest {
        [b'(', b')', ..] | [b'[', b']', ..] => 2,
        // A conversion, or `new`: up to its parameters.
        [b' ', ..] => rest.iter().position(|byte| *byte == b'(').unwrap_or(rest.len()),
        _ => {
            let is_sign = |byte: &u8| b"<>=-+*/%^&|~!,".contains(byte);
            // `operator< <int>(…)` has a space before what it is a template of.
            rest.iter().position(|byte| !is_sign(byte)).unwrap_or(rest.len()).max(1)
        }
    }
}

/// Whether a parenthesis that opens at `at` begins a function's own parameters: not `(anonymous namespace)`
/// or `decltype(…)`, and not the parameters of a function around it.
fn is_parameters(text: &str, start: usize, at: usize) -> bool {
    let token = text.get(start..at).unwrap_or_default();
    if token.is_empty() || token.ends_with("::") || token == "decltype" {
        return false;
    }
    let mut depth = 0_usize;
    for (offset, byte) in text.bytes().enumerate().skip(at) {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            let after = text.get(offset + 1..).unwrap_or_default();
            let after = after.strip_prefix(" const").unwrap_or(after);
            return !after.starts_with("::");
        }
    }
    true
}

/// Closes a bracket, and what was opened inside of it and is none: `a < b` within parentheses.
fn close(open: &mut Vec<u8>, byte: u8) {
    let opening = match byte {
        b')' => b'(',
        b']' => b'[',
        _ => b'{',
    };
    if open.contains(&opening) {
        while open.pop().is_some_and(|last| last != opening) {}
    }
}

#[cfg(test)]
mod tests {
    use super::Qualified;

    /// The function's own name is found behind the type that it returns, and inside of another function.
    #[test]
    fn qualified_names() {
        for (text, name) in [
            ("main", "main"),
            ("wait_for_replica()", "wait_for_replica()"),
            ("void std::sort<int*>(int*, int*)", "std::sort<int*>(int*, int*)"),
            ("std::enable_if<(1 > 0), void>::type shop::rank<int>(int)", "shop::rank<int>(int)"),
            (
                "std::enable_if<true, int>::type foo<int>(std::vector<int>&)",
                "foo<int>(std::vector<int>&)",
            ),
            ("decltype(auto) boost::asio::post<f>(f&&)", "boost::asio::post<f>(f&&)"),
            ("decltype (((declval<f>)())()) std::invoke<f>(f&&)", "std::invoke<f>(f&&)"),
            ("unsigned long const& shop::find<int>(int) const", "shop::find<int>(int) const"),
            ("(anonymous namespace)::work(int)", "(anonymous namespace)::work(int)"),
            ("shop::(anonymous namespace)::work(int)", "shop::(anonymous namespace)::work(int)"),
            (
                "auto rank()::{lambda(auto:1, auto:2)#1}::operator()<int, int>(int, int) const",
                "rank()::{lambda(auto:1, auto:2)#1}::operator()<int, int>(int, int) const",
            ),
            ("shop::index::operator[](int)", "shop::index::operator[](int)"),
            ("bool shop::operator< <int>(int, int)", "shop::operator< <int>(int, int)"),
            (
                "std::ostream& shop::operator<<(std::ostream&, int)",
                "shop::operator<<(std::ostream&, int)",
            ),
            ("shop::cart::operator bool() const", "shop::cart::operator bool() const"),
            ("operator new(unsigned long)", "operator new(unsigned long)"),
            ("void work<int>(int) [clone .cold]", "work<int>(int) [clone .cold]"),
            (
                "<shop::Job as core::future::Future>::poll",
                "<shop::Job as core::future::Future>::poll",
            ),
            ("core::slice::<impl [T]>::sort", "core::slice::<impl [T]>::sort"),
            ("sort<int*, rank()::<lambda(auto:1)> >", "sort<int*, rank()::<lambda(auto:1)> >"),
            ("", ""),
        ] {
            let found = Qualified::of(text);
            assert_eq!(found.name, name, "{text}");
            assert!(name.starts_with(found.bare), "{text}");
        }
        // However forged, it comes to an end.
        for text in
            ["operator", "operator(", "((((", "))))", "a <<<< b", "x::operator <", "->", "{"]
        {
            Qualified::of(text);
        }
    }

    /// For people, without parameters.
    #[test]
    fn bare_names() {
        for (text, bare) in [
            ("wait_for_replica()", "wait_for_replica"),
            ("std::enable_if<true, int>::type foo<int>(std::vector<int>&)", "foo<int>"),
            ("shop::(anonymous namespace)::work(int) const", "shop::(anonymous namespace)::work"),
            (
                "auto rank()::{lambda(auto:1)#1}::operator()<int>(int) const",
                "rank()::{lambda(auto:1)#1}::operator()<int>",
            ),
            ("shop::cart::operator bool() const", "shop::cart::operator bool"),
            ("shop::main::{{closure}}", "shop::main::{{closure}}"),
        ] {
            assert_eq!(Qualified::of(text).bare, bare, "{text}");
        }
    }
}
