//! The advice table as the document that people read.

use super::table::{Family, Repeated, Rule, TABLE};

/// The document; a test compares it with the published one.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Advice\n\n\
         What a report's `advice` says, and where to read more. Made of \
         `profiler-user/src/report/advice/advice.toml`: the first rule that fits is given, and `null` \
         where none does.\n\n\
         Words in braces are what the loop's family calls the remedy:\n\n",
    );
    for family in &TABLE.loops {
        text.push_str(&of_family(family));
    }
    text.push_str("\n| rule | advice | more |\n|---|---|---|\n");
    for Rule { id, advice, links, .. } in &TABLE.rules {
        text.push_str(&row(id, advice, links));
    }
    text.push_str("\nAdded once the same peer was waited for in so many stalls:\n\n");
    text.push_str("| rule | advice | more |\n|---|---|---|\n");
    for Repeated { id, advice, links, .. } in &TABLE.repeated {
        text.push_str(&row(id, advice, links));
    }
    text
}

fn of_family(family: &Family) -> String {
    let words = family.words.iter().map(|(word, name)| format!("{{{word}}} is `{name}`"));
    let words: Vec<String> = words.collect();
    format!("- [{}]({}): {}\n", family.family, family.link, words.join(", "))
}

fn row(id: &str, advice: &str, links: &[String]) -> String {
    let links: Vec<String> = links.iter().map(|link| format!("<{link}>")).collect();
    format!("| `{id}` | {advice} | {} |\n", links.join(" "))
}
