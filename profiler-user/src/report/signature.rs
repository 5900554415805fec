//! A stall's cause and culprit to the number under which equal stalls are grouped.
//!
//! It is the same wherever the same code stalls for the same reason: after a restart, on another host, in
//! another version of the program, on another line of the function. So it is made of names alone: the kind
//! of the cause, and of the culprit and its nearest callers in the application the qualified function, its
//! language, and its source file without folders, or of native code the module, which is there with and
//! without debug information. Where there is no culprit, the program's file stands for it.

use super::schema::stall::{CauseKind, Culprit, ReportedLanguage};
use crate::frame::Frame;
use crate::process::executables::basename;

/// FNV-1a, 64 bits (RFC 9923): the same on every machine and in every version of this program.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// Sixteen hexadecimal digits.
pub fn of(
    kind: &CauseKind,
    culprit: Option<&Culprit>,
    callers: &[&Frame],
    exe: Option<&str>,
) -> String {
    let program = exe.map(file_name).unwrap_or_default();
    let of_culprit = culprit.map_or(["", program, ""], |culprit| {
        let Culprit { function, file, module, language, .. } = culprit;
        names(*language, function.as_deref(), file.as_deref(), module.as_deref())
    });
    let mut hash = BASIS;
    let parts = [kind.name()].into_iter().chain(of_culprit);
    for part in parts.chain(callers.iter().copied().flat_map(of_caller)) {
        // No name has a byte of 0 in it: what ends one part cannot begin the next.
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    format!("{hash:016x}")
}

/// A frame's language, place and function.
fn names<'a>(
    language: ReportedLanguage,
    function: Option<&'a str>,
    file: Option<&'a str>,
    module: Option<&'a str>,
) -> [&'a str; 3] {
    let place = match language {
        ReportedLanguage::Native | ReportedLanguage::Kernel => module.or(file),
        ReportedLanguage::Python | ReportedLanguage::JavaScript => file.or(module),
    };
    let place = place.map(file_name).unwrap_or_default();
    [self::language(language), place, function.unwrap_or_default()]
}

fn of_caller(frame: &Frame) -> [&str; 3] {
    let Frame { function, file, module, language, .. } = frame;
    names((*language).into(), function.as_deref(), file.as_deref(), module.as_deref())
}

fn file_name(path: &str) -> &str {
    basename(path.trim_end_matches(" (deleted)"))
}

fn language(language: ReportedLanguage) -> &'static str {
    match language {
        ReportedLanguage::Python => "python",
        ReportedLanguage::Native => "native",
        ReportedLanguage::JavaScript => "javascript",
        ReportedLanguage::Kernel => "kernel",
    }
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::frame::Frame;
    use crate::report::sample::python;
    use crate::report::schema::stall::{CauseKind, Culprit, PartOfStall, ReportedLanguage};

    fn culprit(function: &str, file: Option<&str>, module: Option<&str>) -> Culprit {
        Culprit {
            function: Some(function.to_owned()),
            file: file.map(str::to_owned),
            line: Some(12),
            module: module.map(str::to_owned),
            language: if module.is_some() {
                ReportedLanguage::Native
            } else {
                ReportedLanguage::Python
            },
            thread: 4242,
            time_ns: 9,
            part: PartOfStall::Running,
        }
    }

    /// Where the code lies, on which line, in which thread and for how long makes no difference; cause,
    /// function and file do. It is written down here because nobody's groups may change with a release.
    #[test]
    fn groups() {
        let exe = Some("/usr/bin/python3.11");
        let signature = |culprit: &Culprit| of(&CauseKind::Unknown, Some(culprit), &[], exe);
        let pay = culprit("pay", Some("/srv/v1/app.py"), None);
        let moved = Culprit {
            file: Some("/opt/v2/app.py".to_owned()),
            line: Some(99),
            thread: 7,
            time_ns: 1,
            part: PartOfStall::Blocked,
            ..pay.clone()
        };
        assert_eq!(signature(&pay), "eb5e9bf950ea0193");
        assert_eq!(signature(&moved), signature(&pay));
        assert_ne!(signature(&culprit("paid", Some("/srv/app.py"), None)), signature(&pay));
        assert_ne!(signature(&culprit("pay", Some("/srv/other.py"), None)), signature(&pay));
        let stopped = CauseKind::Stopped { by: None, tracer: None };
        assert_ne!(of(&stopped, Some(&pay), &[], exe), signature(&pay));

        let bare = culprit("parse", None, Some("/srv/shop (deleted)"));
        let lines = culprit("parse", Some("/build/parse.c"), Some("/opt/shop"));
        assert_eq!(signature(&bare), signature(&lines), "with and without debug information");
        let nobody = |exe| of(&stopped, None, &[], exe);
        assert_eq!(nobody(Some("/srv/a/shop")), nobody(Some("/opt/shop")));
        assert_ne!(nobody(Some("/srv/shop")), nobody(Some("/srv/other")));
    }

    /// Who called the culprit makes a difference, from which line and folder does not.
    #[test]
    fn callers() {
        let pay = culprit("pay", Some("/srv/app.py"), None);
        let of = |callers: &[&Frame]| of(&CauseKind::Unknown, Some(&pay), callers, None);
        let checkout = python("checkout", "/srv/v1/app.py", 7);
        let moved = python("checkout", "/opt/v2/app.py", 99);
        let refund = python("refund", "/srv/v1/app.py", 7);
        assert_eq!(of(&[&checkout]), of(&[&moved]));
        assert_ne!(of(&[&checkout]), of(&[&refund]));
        assert_ne!(of(&[&checkout]), of(&[]));
        assert_ne!(of(&[&checkout, &refund]), of(&[&refund, &checkout]));
    }
}
