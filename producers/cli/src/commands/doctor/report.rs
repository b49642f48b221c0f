//! What was found, and how it is shown.

use std::fmt::Write as _;

use serde::Serialize;

/// Columns of the text for a person.
const WIDTH: usize = 92;
/// Columns before what was found: two spaces, the status, the name.
const INDENT: usize = 2 + 9 + 20;

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// It is there and was seen to work.
    Ok,
    /// Something that is optional does not work.
    Warn,
    /// What the group is about does not work.
    Fail,
    /// It was not tried.
    Skipped,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Group {
    /// `--profile host`. A failure here is exit code 1.
    HostProfiling,
    /// Confining what runs.
    Sandbox,
    /// What virtual machines need of the processor.
    VirtualMachines,
    /// What commands can be run by.
    Backends,
    /// NATS.
    Bus,
}

impl Group {
    const ALL: [Self; 5] =
        [Self::HostProfiling, Self::Sandbox, Self::VirtualMachines, Self::Backends, Self::Bus];

    fn title(self) -> &'static str {
        match self {
            Self::HostProfiling => "Host profiling",
            Self::Sandbox => "Sandbox",
            Self::VirtualMachines => "Virtual machines",
            Self::Backends => "Backends",
            Self::Bus => "Bus",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    group: Group,
    name: &'static str,
    pub(super) status: Status,
    pub(super) found: String,
    needed_for: &'static str,
    /// What to do about it, if it does not work and something can be done.
    pub(super) action: Option<String>,
}

impl Finding {
    pub(super) fn new(
        group: Group,
        name: &'static str,
        status: Status,
        found: impl Into<String>,
        needed_for: &'static str,
    ) -> Self {
        Self { group, name, status, found: found.into(), needed_for, action: None }
    }

    pub(super) fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }
}

/// All findings.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether `--profile host` works here.
    host_profiling: bool,
    system: String,
    glasshouse: &'static str,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(system: String, findings: Vec<Finding>) -> Self {
        let host_profiling = !findings
            .iter()
            .any(|finding| finding.group == Group::HostProfiling && finding.status == Status::Fail);
        Self { host_profiling, system, glasshouse: env!("CARGO_PKG_VERSION"), findings }
    }

    /// 0 when host profiling works here, 1 when it does not.
    pub(super) fn exit_code(&self) -> u8 {
        u8::from(!self.host_profiling)
    }

    /// For a person. What works takes one line; what does not says why it matters and what to do.
    pub(super) fn text(&self) -> String {
        let mut out = format!("Glasshouse {} on {}\n", self.glasshouse, self.system);
        for group in Group::ALL {
            let mut findings = self.findings.iter().filter(|finding| finding.group == group).peekable();
            if findings.peek().is_some() {
                let _ = writeln!(out, "\n{}", group.title());
            }
            findings.for_each(|finding| finding.write(&mut out));
        }
        let _ = writeln!(out, "\n{}", self.closing());
        out
    }

    fn closing(&self) -> String {
        let names = |status: Status, in_group: fn(Group) -> bool| -> Vec<&'static str> {
            let matching = |finding: &&Finding| finding.status == status && in_group(finding.group);
            self.findings.iter().filter(matching).map(|finding| finding.name).collect()
        };
        let broken = names(Status::Fail, |group| group == Group::HostProfiling);
        let mut line = match self.host_profiling {
            true => "Host profiling works here.".to_owned(),
            false => format!("Host profiling does not work here: see {}.", broken.join(", ")),
        };
        let elsewhere = names(Status::Fail, |group| group != Group::HostProfiling);
        if !elsewhere.is_empty() {
            let _ = write!(line, " Failed: {}.", elsewhere.join(", "));
        }
        match names(Status::Warn, |_| true).len() {
            0 => {}
            1 => line.push_str(" The warning is about something optional."),
            count => {
                let _ = write!(line, " The {count} warnings are about what is optional.");
            }
        }
        line
    }
}

impl Finding {
    fn write(&self, out: &mut String) {
        let mut paragraph = |lead: String, text: &str| {
            let mut lead = lead;
            for line in wrap(text, WIDTH - INDENT) {
                let _ = writeln!(out, "{lead:<INDENT$}{line}");
                lead = String::new();
            }
        };
        paragraph(format!("  {:<9}{}", self.status.as_str(), self.name), &self.found);
        if self.status == Status::Ok {
            return;
        }
        paragraph(format!("{:>width$}", "for: ", width = INDENT), self.needed_for);
        if let Some(action) = &self.action {
            paragraph(format!("{:>width$}", "do: ", width = INDENT), action);
        }
    }
}

/// Breaks at spaces; a word that is wider than the line stays whole, so that a path or a command can be copied.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_some_and(|line| line.chars().count() + 1 + word.chars().count() <= width);
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if fits => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(group: Group, status: Status) -> Finding {
        Finding::new(group, "thing", status, "what was found", "what it is for")
    }

    #[test]
    fn only_a_failure_of_host_profiling_is_exit_code_1() {
        let code = |findings| Report::new("Linux".into(), findings).exit_code();
        assert_eq!(code(vec![]), 0);
        for status in [Status::Ok, Status::Warn, Status::Skipped] {
            assert_eq!(code(vec![finding(Group::HostProfiling, status)]), 0);
        }
        assert_eq!(code(vec![finding(Group::Bus, Status::Fail)]), 0);
        assert_eq!(
            code(vec![
                finding(Group::HostProfiling, Status::Ok),
                finding(Group::HostProfiling, Status::Fail)
            ]),
            1
        );
    }

    #[test]
    fn what_works_takes_one_line_and_the_rest_says_what_to_do() {
        let report = Report::new(
            "Linux 6.18".into(),
            vec![
                finding(Group::Bus, Status::Fail).action("start it"),
                finding(Group::HostProfiling, Status::Ok),
                finding(Group::HostProfiling, Status::Warn),
            ],
        );
        let text = report.text();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "",
                "Host profiling",
                "  ok       thing               what was found",
                "  warn     thing               what was found",
                "                          for: what it is for",
                "",
                "Bus",
                "  fail     thing               what was found",
                "                          for: what it is for",
                "                           do: start it",
                "",
                "Host profiling works here. Failed: thing. The warning is about something optional.",
            ]
        );
        assert!(!text.contains(" \n"), "no trailing spaces");
    }

    #[test]
    fn the_closing_line_names_what_fails() {
        let report = Report::new(String::new(), vec![finding(Group::HostProfiling, Status::Fail)]);
        assert_eq!(report.closing(), "Host profiling does not work here: see thing.");
    }

    #[test]
    fn json_has_every_field_of_every_finding() {
        let report = Report::new("Linux 6.18".into(), vec![finding(Group::VirtualMachines, Status::Skipped)]);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["host_profiling"], true);
        assert_eq!(
            value["findings"][0],
            serde_json::json!({
                "group": "virtual_machines", "name": "thing", "status": "skipped", "found": "what was found",
                "needed_for": "what it is for", "action": null,
            })
        );
    }

    #[test]
    fn long_words_stay_whole() {
        assert_eq!(wrap("a bb cccccccc d", 4), ["a bb", "cccccccc", "d"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("one\n  two", 20), ["one two"]);
    }
}
