//! Which BPF programs this kernel takes, and whether it takes the probe.

use std::time::{Duration, Instant};

use glasshouse_host_probe::doctor::Trial;
use glasshouse_host_probe::{HostProbe, LoadOptions};

use super::super::report::{Finding, Group, Status};
use super::privileges::Privileges;

const PROBE: &str = "host probe";
const FOR_PROBE: &str = "--profile host";

/// What each is good for, and what can be done where it is refused.
const USES: [(&str, &str, &str); 8] = [
    ("ringbuf", "handing over what the programs saw", "use Linux 5.8 or newer"),
    (
        "tp_btf",
        "every hook of the probe",
        "use Linux 5.5 or newer with CONFIG_DEBUG_INFO_BTF=y, outside of a container",
    ),
    ("tracepoint", "optional: single system calls", ""),
    ("raw_tp", "optional: nothing needs it today", ""),
    ("cgroup_sock_addr", "optional: watching and refusing connects at the cgroup", ""),
    (
        "fentry",
        "optional: hooks without the ~0.1 us that a system call tracepoint costs every process",
        "only if you want it: a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y and no policy against it",
    ),
    (
        "lsm",
        "optional: facts from where the kernel decides, and refusing there",
        "only if you want it: a kernel with CONFIG_BPF_LSM=y, booted with bpf in lsm=",
    ),
    ("kprobe", "optional: nothing needs it today", ""),
];

pub(super) async fn findings(privileges: &Privileges) -> Vec<Finding> {
    if !privileges.suffice() {
        let untried = |name, needed_for| {
            let found = "not tried: it takes the privileges above";
            Finding::new(Group::HostProfiling, name, Status::Skipped, found, needed_for)
        };
        return vec![untried("program types", "every hook of the probe"), untried(PROBE, FOR_PROBE)];
    }
    let tried = tokio::task::spawn_blocking(|| {
        let options = LoadOptions::from_env();
        let trials = glasshouse_host_probe::doctor::trials(&options);
        (trials, load(&options))
    });
    match tried.await {
        Ok((trials, loaded)) => {
            let mut findings = of_trials(&trials);
            findings.push(of_probe(loaded, &LoadOptions::from_env()));
            findings
        }
        Err(error) => {
            let found = format!("trying it failed: {error}");
            vec![Finding::new(Group::HostProfiling, PROBE, Status::Fail, found, FOR_PROBE)]
        }
    }
}

/// What is wrong for every program alike is said once.
fn of_trials(trials: &[Trial]) -> Vec<Finding> {
    let (ring, programs): (Vec<&Trial>, Vec<&Trial>) =
        trials.iter().partition(|trial| trial.name == "ringbuf");
    let mut findings: Vec<Finding> = ring.into_iter().map(of_trial).collect();
    match programs.as_slice() {
        [first, rest @ ..] if !rest.is_empty() && rest.iter().all(|trial| trial.result == first.result) => {
            match &first.result {
                Ok(()) => findings.extend(programs.into_iter().map(of_trial)),
                Err(reason) => findings.push(Finding::new(
                    Group::HostProfiling,
                    "program types",
                    Status::Fail,
                    format!("none can be loaded: {}", brief(reason)),
                    "every hook of the probe",
                )),
            }
        }
        _ => findings.extend(programs.into_iter().map(of_trial)),
    }
    findings
}

fn of_trial(trial: &Trial) -> Finding {
    let (needed_for, advice) = USES
        .iter()
        .find(|(name, ..)| *name == trial.name)
        .map_or(("watching", ""), |(_, needed_for, advice)| (*needed_for, *advice));
    let (status, found) = match (&trial.result, trial.required) {
        (Ok(()), _) if trial.name == "ringbuf" => (Status::Ok, "can be made".to_owned()),
        (Ok(()), _) => (Status::Ok, "loads and attaches".to_owned()),
        (Err(reason), true) => (Status::Fail, brief(reason)),
        (Err(reason), false) => (Status::Warn, brief(reason)),
    };
    let finding = Finding::new(Group::HostProfiling, trial.name, status, found, needed_for);
    if advice.is_empty() || status == Status::Ok { finding } else { finding.action(advice) }
}

/// The loader wraps what the kernel said: `the BPF_PROG_LOAD syscall returned REASON. Verifier output: LOG`.
fn brief(reason: &str) -> String {
    let (said, log) = reason.split_once(". Verifier output:").unwrap_or((reason, ""));
    let said = said.split_once(" syscall returned ").map_or_else(
        || said.to_owned(),
        |(before, error)| format!("{} refused: {error}", before.trim_start_matches("the ")),
    );
    match log.trim().lines().last() {
        Some(line) => format!("{said} ({})", line.trim()),
        None => said,
    }
}

/// Loads and attaches the whole probe, and lets go of it again.
fn load(options: &LoadOptions) -> Result<(usize, Duration), String> {
    let began = Instant::now();
    let probe = HostProbe::load(options).map_err(|error| error.to_string())?;
    Ok((probe.hooks().len(), began.elapsed()))
}

fn of_probe(loaded: Result<(usize, Duration), String>, options: &LoadOptions) -> Finding {
    let objects = match &options.object_dir {
        Some(dir) => format!(" from {}", dir.display()),
        None => String::new(),
    };
    match loaded {
        Ok((hooks, took)) => {
            let found = format!("{hooks} programs loaded and attached{objects} in {} ms", took.as_millis());
            Finding::new(Group::HostProfiling, PROBE, Status::Ok, found, FOR_PROBE)
        }
        // The probe's errors say what to do.
        Err(reason) => Finding::new(Group::HostProfiling, PROBE, Status::Fail, reason, FOR_PROBE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_optional_only_warns() {
        let trial = |name, required| Trial { name, required, result: Err("refused".to_owned()) };
        let optional = of_trial(&trial("lsm", false));
        assert_eq!((optional.status, optional.action.is_some()), (Status::Warn, true));
        assert_eq!(of_trial(&trial("tp_btf", true)).status, Status::Fail);
        assert_eq!(of_trial(&trial("new", false)).status, Status::Warn);
        assert_eq!(of_trial(&Trial { result: Ok(()), ..trial("lsm", false) }).status, Status::Ok);
    }

    #[test]
    fn what_is_wrong_for_all_is_said_once() {
        let trial = |name, result: Result<(), &str>| Trial {
            name,
            required: name == "tp_btf",
            result: result.map_err(str::to_owned),
        };
        let ring = trial("ringbuf", Ok(()));
        let no = Err("no object");
        let all = of_trials(&[ring.clone(), trial("tp_btf", no), trial("lsm", no)]);
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].status, all[1].found.as_str()), (Status::Fail, "none can be loaded: no object"));
        assert_eq!(of_trials(&[ring.clone(), trial("tp_btf", no), trial("lsm", Err("other"))]).len(), 3);
        assert_eq!(of_trials(&[ring, trial("tp_btf", Ok(())), trial("lsm", Ok(()))]).len(), 3);
    }

    #[test]
    fn reasons_are_brief() {
        assert_eq!(
            brief(
                "the BPF_PROG_LOAD syscall returned Operation not permitted (os error 1). Verifier output: "
            ),
            "BPF_PROG_LOAD refused: Operation not permitted (os error 1)"
        );
        assert_eq!(brief("the X syscall returned E. Verifier output: a\n b\n"), "X refused: E (b)");
        assert_eq!(brief("something else"), "something else");
    }

    #[test]
    fn the_probe_says_how_long_it_took() {
        let finding = of_probe(Ok((7, Duration::from_millis(91))), &LoadOptions::default());
        assert_eq!(finding.found, "7 programs loaded and attached in 91 ms");
        assert_eq!(of_probe(Err("no".into()), &LoadOptions::default()).status, Status::Fail);
    }
}
