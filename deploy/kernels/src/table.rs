//! docs/kernels.md.

use std::collections::BTreeMap;

use crate::facts;
use crate::relocations::Fit;

/// What was found out about one kernel.
pub(crate) struct Row {
    pub(crate) arch: &'static str,
    pub(crate) release: String,
    /// Debian's version and where it is from, or what else this machine is.
    pub(crate) origin: String,
    /// The machine that made the table.
    pub(crate) is_host: bool,
    /// Older than what is asked for: that it refuses is right.
    pub(crate) too_old: bool,
    /// Newer builds of the series that are listed and could not be had.
    pub(crate) gone: Vec<String>,
    pub(crate) ran: Ran,
    /// As the kernel of a guest, if it was tried.
    pub(crate) guest: Option<InGuest>,
    pub(crate) fit: Result<Fit, String>,
}

/// What came of running it.
pub(crate) enum Ran {
    /// Only the relocations were checked.
    Not,
    /// It did not come up, or handed over nothing.
    Failed(String),
    Yes(Outcome),
}

/// Of a kernel that ran.
pub(crate) struct Outcome {
    pub(crate) btf: bool,
    /// The program types that doctor loaded and attached, and those it could not.
    pub(crate) types: Vec<String>,
    pub(crate) types_missing: Vec<String>,
    /// Why there is no receipt.
    pub(crate) refused: Option<String>,
    pub(crate) compared: Compared,
    pub(crate) attempts: u32,
}

/// Receipts beside those of the host, which are compared with themselves.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) facts: usize,
    pub(crate) differences: Vec<String>,
    /// What differs in how it was seen.
    pub(crate) means: Vec<String>,
    /// What was lost before it was watched again.
    pub(crate) lossy: Vec<String>,
}

impl Compared {
    /// Facts of the host, and facts and flaws of another machine.
    pub(crate) fn of(
        host: &BTreeMap<String, usize>,
        (facts, flaws): (BTreeMap<String, usize>, Vec<String>),
    ) -> Self {
        let (means, mut differences): (Vec<String>, _) =
            facts::differences(host, &facts).into_iter().partition(|line| facts::is_means(line));
        differences.extend(flaws);
        Self { facts: facts.len(), differences, means, lossy: Vec::new() }
    }

    fn cell(&self) -> String {
        match self.differences.len() {
            0 => format!("all {}", self.facts),
            differ => format!("{differ} differ"),
        }
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        let means = self.means.iter().map(|line| format!("no fact, but how it was seen: {line}"));
        self.lossy.iter().chain(&self.differences).cloned().chain(means)
    }
}

/// What came of a kernel as that of a guest.
#[derive(Default)]
pub(crate) struct InGuest {
    /// Why it was not tried.
    pub(crate) untried: Option<String>,
    /// Of the command, which has to run whether it is watched or not.
    pub(crate) failed: Option<String>,
    /// Why it was not watched from inside.
    pub(crate) refused: Option<String>,
    /// How the loaded programs read the kernel's fields.
    pub(crate) reads: String,
    pub(crate) compared: Compared,
}

impl InGuest {
    fn passes(&self, too_old: bool) -> bool {
        let watched = match &self.refused {
            Some(_) => too_old,
            None => self.compared.differences.is_empty(),
        };
        self.failed.is_none() && watched
    }

    fn cells(&self, too_old: bool) -> [String; 3] {
        let none = || "–".to_owned();
        if let Some(reason) = &self.untried {
            return [none(), none(), format!("*not run*: {reason}")];
        }
        let (facts, reads) = match (&self.failed, &self.refused) {
            (None, None) => (self.compared.cell(), self.reads.clone()),
            _ => (none(), none()),
        };
        let status = match (&self.failed, &self.refused) {
            (Some(_), _) => "**does not run**",
            (None, Some(_)) if too_old => "older than supported: refused inside; the command ran",
            (None, Some(_)) => "**does not load**",
            (None, None) if self.compared.lossy.is_empty() && self.passes(too_old) => "works",
            (None, None) if self.passes(too_old) => "works; at times it loses something, and says so",
            (None, None) => "**differs**",
        };
        [facts, reads, status.to_owned()]
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        let why = self.failed.iter().chain(&self.refused).cloned();
        why.chain(self.compared.notes()).map(|note| format!("as a guest's: {note}"))
    }
}

impl Row {
    /// It is as it should be.
    pub(crate) fn passes(&self) -> bool {
        self.stands() && self.guest.as_ref().is_none_or(|guest| guest.passes(self.too_old))
    }

    /// The same, without the guest.
    fn stands(&self) -> bool {
        let ran = match &self.ran {
            Ran::Not => true,
            Ran::Failed(_) => false,
            Ran::Yes(outcome) => match &outcome.refused {
                Some(_) => self.too_old,
                None => outcome.compared.differences.is_empty(),
            },
        };
        ran && (self.too_old || self.fit.as_ref().is_ok_and(|fit| fit.missing.is_empty()))
    }

    /// The release, and the architecture where the release does not say.
    pub(crate) fn name(&self) -> String {
        if self.release.ends_with(self.arch) {
            self.release.clone()
        } else {
            format!("{} ({})", self.release, self.arch)
        }
    }

    fn fit(&self) -> String {
        match &self.fit {
            Ok(fit) if fit.missing.is_empty() => format!("{} of {0} fit", fit.relocations),
            Ok(fit) => format!("{} not there", fit.missing.len()),
            Err(reason) => format!("not checked: {reason}"),
        }
    }

    fn cells(&self) -> [String; 8] {
        let none = || "–".to_owned();
        let (btf, loads, types, facts, status) = match &self.ran {
            Ran::Not => (none(), none(), none(), none(), "relocations checked; *not run*".to_owned()),
            Ran::Failed(_) => (none(), none(), none(), none(), "**did not boot**".to_owned()),
            Ran::Yes(outcome) => {
                let mut types = outcome.types.join(", ");
                if !outcome.types_missing.is_empty() {
                    types.push_str(&format!("; not {}", outcome.types_missing.join(", ")));
                }
                let facts = match &outcome.refused {
                    Some(_) => none(),
                    None => outcome.compared.cell(),
                };
                let status = match (&outcome.refused, self.stands()) {
                    (Some(_), true) => "older than supported: refused",
                    (None, true) if !outcome.compared.lossy.is_empty() => {
                        "works; at times it loses something, and says so"
                    }
                    (None, true) => "works",
                    (Some(_), false) => "**does not load**",
                    (None, false) => "**differs**",
                };
                let btf = if outcome.btf { "yes" } else { "no" };
                let loads = if outcome.refused.is_none() { "yes" } else { "no" };
                (btf.to_owned(), loads.to_owned(), types, facts, status.to_owned())
            }
        };
        let kernel = self.name();
        [kernel, self.origin.clone(), btf, loads, types, facts, self.fit(), status]
    }

    /// What the table has no room for.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = self.gone.clone();
        match &self.ran {
            Ran::Not => {}
            Ran::Failed(reason) => notes.push(reason.clone()),
            Ran::Yes(outcome) => {
                notes.extend(outcome.refused.clone());
                notes.extend(outcome.compared.notes());
                if outcome.attempts > 1 {
                    notes.push(format!("came up at boot {}", outcome.attempts));
                }
            }
        }
        notes.extend(self.guest.iter().flat_map(InGuest::notes));
        if let Ok(fit) = &self.fit {
            notes.extend(fit.missing.iter().map(|name| format!("not in this kernel: {name}")));
            notes.extend(
                fit.optional
                    .iter()
                    .map(|name| format!("not in this kernel, and the programs do without: {name}")),
            );
        }
        notes
    }
}

const HEAD: [&str; 8] = [
    "kernel",
    "from",
    "BTF",
    "loads",
    "program types by `doctor`",
    "facts as on the host",
    "relocations",
    "status",
];

/// The table alone.
pub(crate) fn table(rows: &[Row]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&HEAD.map(str::to_owned)) + &"|---".repeat(HEAD.len()) + "|\n";
    for row in rows {
        text += &line(&row.cells());
    }
    text
}

/// The same kernels as those of guests; empty if none was tried.
pub(crate) fn guests(rows: &[Row]) -> String {
    let tried = rows.iter().filter_map(|row| Some((row, row.guest.as_ref()?)));
    let lines: String = tried
        .map(|(row, guest)| format!("| {} | {} |\n", row.name(), guest.cells(row.too_old).join(" | ")))
        .collect();
    match lines.is_empty() {
        true => lines,
        false => {
            format!(
                "| kernel of the guest | facts as on the host | fields are read | status |\n|---|---|---|---|\n{lines}"
            )
        }
    }
}

/// The document.
pub(crate) fn document(rows: &[Row], complaints: &[String], date: &str) -> String {
    let mut text = format!(
        "# Kernels\n\n\
         Made by `cargo run -p glasshouse-kernels` on {date}; do not edit. It takes the newest build of every series that Debian's \
         repositories offer (with `--every-build` all builds), boots it in an emulated machine with the static `glasshouse` \
         of this tree, watches `deploy/kernels/guest/workload.c` there and on the host, and compares the receipts.\n\n\
         The probe needs BTF, `tp_btf` and a ring buffer, so Linux 5.17 or newer. No other program type is required: where \
         `doctor` finds none, nothing is missing.\n\n"
    );
    text += &table(rows);
    text += "\n\
        - *facts as on the host*: every value of the two receipts (all within sight: must be closed; with `chroot`, mounts and \
        ptrace: must be partial for the same reasons) is the same, but for what `deploy/kernels/src/facts.rs` lists: ids, \
        clocks, costs, ports that the kernel chose, and what depends on who was faster (futex calls, the total of calls, how events were collapsed). Counters add up, and nothing was lost.\n\
        - *relocations*: every CO-RE relocation and `tp_btf` hook of the compiled objects is found in the BTF of that \
        kernel's image, by the library that relocates when the probe is loaded.\n\
        - *not run*: there is no machine of that architecture here. That it fits is known, that it works is not.\n";
    text += &format!(
        "\n## As the kernels of guests\n\n\
         `glasshouse run --backend qemu --profile combined` boots each of them with the guest probe as PID 1 ([vm.md](vm.md)), which \
         loads the same objects; what it says from inside is compared with what the host saw of the same workload here.\n\n{}\n\
         - *facts as on the host*: of both receipts, what one vantage point tells: processes, files, sockets, names, operations, \
         losses, the outcome, and why it is partial.\n\
         - *fields are read*: which object was loaded, by what the guest probe said: that with direct reads, or that with helper \
         calls, which is what a kernel gets that has not what the other needs or refuses it.\n",
        guests(rows)
    );
    let noted: Vec<(String, Vec<String>)> =
        rows.iter().map(|row| (row.name(), row.notes())).filter(|(_, notes)| !notes.is_empty()).collect();
    if !noted.is_empty() {
        text += "\n## Notes\n";
    }
    for (kernel, notes) in noted {
        text += &format!("\n**{kernel}**\n\n");
        for note in notes {
            text += &format!("- {}\n", note.trim().replace('\n', "\n  "));
        }
    }
    if !complaints.is_empty() {
        text += "\n## What could not be had\n\n";
        for complaint in complaints {
            text += &format!("- {complaint}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Compared, InGuest, Outcome, Ran, Row, document};
    use crate::relocations::Fit;

    fn row(change: impl FnOnce(&mut Outcome)) -> Row {
        let mut outcome = Outcome {
            btf: true,
            types: vec!["tp_btf".to_owned()],
            types_missing: vec!["lsm".to_owned()],
            refused: None,
            compared: Compared { facts: 7, ..Compared::default() },
            attempts: 1,
        };
        change(&mut outcome);
        Row {
            arch: "amd64",
            release: "6.1.0-1-cloud-amd64".to_owned(),
            origin: "6.1.1, bookworm".to_owned(),
            is_host: false,
            too_old: false,
            gone: Vec::new(),
            ran: Ran::Yes(outcome),
            guest: None,
            fit: Ok(Fit::default()),
        }
    }

    #[test]
    fn nothing_that_was_found_stays_out_of_the_document() {
        let odd = |outcome: &mut Outcome| {
            outcome.compared.differences = vec!["a difference".to_owned()];
            outcome.compared.means = vec!["another hook".to_owned()];
            outcome.compared.lossy = vec!["a loss".to_owned()];
            outcome.attempts = 2;
        };
        let text = document(&[row(odd)], &["E: a suite".to_owned()], "2026-01-01");
        for found in
            ["a difference", "another hook", "a loss", "boot 2", "E: a suite", "**differs**", "not lsm"]
        {
            assert!(text.contains(found), "{found}: {text}");
        }
        let text = document(&[row(|outcome| outcome.refused = Some("no".to_owned()))], &[], "2026-01-01");
        assert!(text.contains("**does not load**"), "{text}");
    }

    fn guest(change: impl FnOnce(&mut InGuest)) -> Row {
        let mut guest = InGuest { reads: "directly".to_owned(), ..InGuest::default() };
        change(&mut guest);
        Row { guest: Some(guest), ..row(|_| ()) }
    }

    #[test]
    fn what_was_found_in_a_guest_counts_and_stands_in_the_document() {
        assert!(guest(|_| ()).passes());
        let untried = guest(|guest| guest.untried = Some("no modules".to_owned()));
        assert!(untried.passes());
        assert!(document(&[untried], &[], "2026-01-01").contains("| – | – | *not run*: no modules |"));
        assert!(document(&[guest(|_| ())], &[], "2026-01-01").contains("| all 0 | directly | works |"));
        for (bad, said) in [
            (guest(|guest| guest.failed = Some("no machine".to_owned())), "**does not run**"),
            (guest(|guest| guest.refused = Some("no BTF".to_owned())), "**does not load**"),
            (guest(|guest| guest.compared.differences.push("one".to_owned())), "1 differ"),
        ] {
            assert!(!bad.passes());
            let text = document(&[bad], &[], "2026-01-01");
            assert!(text.contains(said) && text.contains("- as a guest's: "), "{text}");
        }
    }

    #[test]
    fn only_the_same_facts_pass_and_only_what_is_too_old_may_refuse() {
        assert!(row(|_| ()).passes());
        assert!(!row(|outcome| outcome.compared.differences.push("one".to_owned())).passes());
        let mut refusing = row(|outcome| outcome.refused = Some("no".to_owned()));
        assert!(!refusing.passes());
        refusing.too_old = true;
        assert!(refusing.passes());
        let mut unfit = row(|_| ());
        unfit.fit = Ok(Fit { missing: ["task_struct.x".to_owned()].into(), ..Fit::default() });
        assert!(!unfit.passes());
    }
}
