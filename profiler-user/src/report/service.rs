//! What is known of a process to the name that its people have for it.

use super::printable::{cut, printable};
use crate::process::executables::{basename, interpreter};

/// A longer name is nobody's.
const MAX_BYTES: usize = 128;

/// Programs that are given the application to serve, as `shop.main:app`.
const SERVERS: [&str; 8] =
    ["uvicorn", "gunicorn", "hypercorn", "granian", "daphne", "fastapi", "waitress-serve", "uwsgi"];

/// Options of interpreters whose value is the next argument.
const WITH_VALUE: [&str; 9] =
    ["-W", "-X", "-r", "--require", "--import", "--loader", "-cp", "-classpath", "--class-path"];

/// The systemd unit; else the container, where its control group has its name; else what the command line runs.
pub fn of(cgroups: &str, is_in_container: bool, arguments: &[String]) -> Option<String> {
    // A runtime's own unit may be above a container's group.
    let unit = if is_in_container { None } else { unit(cgroups) };
    let name = unit.or_else(|| container(cgroups)).or_else(|| program(arguments))?;
    let mut name = printable(&name);
    cut(&mut name, MAX_BYTES);
    (!name.is_empty()).then_some(name)
}

/// The folders of all hierarchies' groups, innermost first.
fn folders(cgroups: &str) -> impl Iterator<Item = &str> {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.rsplit('/'))
}

/// `pay` of `/system.slice/pay.service`. A user's manager is a login, no service.
fn unit(cgroups: &str) -> Option<String> {
    let names = folders(cgroups).filter_map(|folder| folder.strip_suffix(".service"));
    names.into_iter().find(|name| !name.starts_with("user@")).map(unescaped)
}

/// LXC's and systemd-nspawn's have names; those of others only numbers.
fn container(cgroups: &str) -> Option<String> {
    let of_nspawn = |folder: &str| {
        folder.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope")).map(unescaped)
    };
    let of_lxc = |folder: &str| folder.strip_prefix("lxc.payload.").map(str::to_owned);
    folders(cgroups).find_map(|folder| of_nspawn(folder).or_else(|| of_lxc(folder)))
}

/// Names of units without systemd's escapes: `pay\x2dapi` is `pay-api`.
fn unescaped(name: &str) -> String {
    let mut pieces = name.split("\\x");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let byte = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(u8::is_ascii) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(piece.get(2..).unwrap_or_default());
            }
            None => {
                text.push_str("\\x");
                text.push_str(piece);
            }
        }
    }
    text
}

/// What a command line runs. A process may have written a title of its own there: its first word counts.
fn program(arguments: &[String]) -> Option<String> {
    let mut arguments = arguments.iter().map(String::as_str);
    let first = arguments.next()?.split_whitespace().next()?;
    let program = basename(first.trim_end_matches(':'));
    let rest: Vec<&str> = arguments.collect();
    let script =
        interpreter(program).filter(|_| !SERVERS.contains(&program)).and_then(|_| script(&rest));
    let (name, rest) = script.unwrap_or((program, &rest));
    let application = SERVERS.contains(&name).then(|| application(rest)).flatten();
    Some(application.unwrap_or(name).to_owned())
}

/// The script or the module that an interpreter is to run, and what follows it.
fn script<'a>(arguments: &'a [&'a str]) -> Option<(&'a str, &'a [&'a str])> {
    let mut at = 0;
    loop {
        let argument = *arguments.get(at)?;
        match argument {
            "-m" | "-jar" => {
                let name = arguments.get(at + 1)?;
                return Some((without_suffix(basename(name)), arguments.get(at + 2..)?));
            }
            "-c" | "-e" | "--eval" | "-" => return None,
            _ if WITH_VALUE.contains(&argument) => at += 2,
            _ if argument.starts_with('-') => at += 1,
            _ => {
                let name = without_suffix(basename(argument));
                return Some((name, arguments.get(at + 1..).unwrap_or_default()));
            }
        }
    }
}

fn without_suffix(name: &str) -> &str {
    let suffixes = [".py", ".pyz", ".js", ".mjs", ".cjs", ".ts", ".jar", ".rb", ".php", ".pl"];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// `shop.main` of `shop.main:app`; an address to listen at ends in digits.
fn application<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let is_name = |text: &str| {
        text.starts_with(|it: char| it.is_alphabetic() || it == '_')
            && text.chars().all(|it| it.is_alphanumeric() || it == '_' || it == '.')
    };
    let pairs = arguments.iter().filter_map(|argument| argument.split_once(':'));
    let mut named = pairs.filter(|(module, object)| {
        is_name(module) && object.starts_with(|it: char| it.is_alphabetic() || it == '_')
    });
    named.next().map(|(module, _)| module)
}

#[cfg(test)]
mod tests {
    use super::of;

    fn service(cgroups: &str, command: &str) -> Option<String> {
        let arguments: Vec<String> = command.split(' ').map(str::to_owned).collect();
        of(cgroups, cgroups.contains("kubepods"), &arguments)
    }

    /// The unit is the name, a login's or a runtime's own is not; then the container's, then the command's.
    #[test]
    fn in_their_order() {
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice";
        for (cgroups, expected) in [
            ("0::/system.slice/pay.service", "pay"),
            ("0::/system.slice/pay.service/worker", "pay"),
            ("4:cpu:/\n1:name=systemd:/system.slice/pay.service\n0::/", "pay"),
            (
                r"0::/system.slice/system-gunicorn.slice/gunicorn@pay\x2dapi.service",
                "gunicorn@pay-api",
            ),
            (&format!("0::{user}/notes.service"), "notes"),
            (&format!("0::{user}/vte-spawn-1.scope"), "app"),
            ("0::/user.slice/user-0.slice/session-3.scope", "app"),
            ("0::/system.slice/containerd.service/kubepods/burstable/pod1/0123", "app"),
            (r"0::/machine.slice/machine-web\x2d1.scope/payload", "web-1"),
            ("0::/lxc.payload.web/system.slice", "web"),
            ("0::/", "app"),
        ] {
            assert_eq!(service(cgroups, "python3 app.py").as_deref(), Some(expected), "{cgroups}");
        }
    }

    /// A command line is known by what it runs: an application, a script, a module, a program.
    #[test]
    fn command_lines() {
        for (command, expected) in [
            ("/usr/bin/redis-server 127.0.0.1:6379", "redis-server"),
            ("nginx: worker process", "nginx"),
            ("/v/bin/python -m uvicorn shop.main:app --port 80", "shop.main"),
            (
                "/v/bin/python3.11 /v/bin/gunicorn -b localhost:80 -w 2 shop.wsgi:make()",
                "shop.wsgi",
            ),
            ("/v/bin/python /v/bin/gunicorn -b localhost:80 shop", "gunicorn"),
            ("python3 -X dev -W error /srv/shop/serve.py --port 80", "serve"),
            ("python3 -m http.server", "http.server"),
            ("python3 -c print()", "python3"),
            ("python3", "python3"),
            ("node --require ./x.js /srv/api/server.mjs", "server"),
            ("java -cp /x.jar -jar /srv/shop-1.2.jar", "shop-1.2"),
            ("uwsgi --module shop.wsgi:application", "shop.wsgi"),
        ] {
            assert_eq!(service("", command).as_deref(), Some(expected), "{command}");
        }
        assert_eq!(service("", ""), None);
        assert_eq!(service("", "\u{1b}[2J").as_deref(), Some(r"\u{1b}[2J"));
    }
}
