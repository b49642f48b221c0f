//! The same kernels as those of guests: `glasshouse run --backend qemu` boots each with the real guest probe as PID 1, which
//! watches the workload from inside, and the host the machine from outside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::Seen;
use crate::programs::Programs;
use crate::run::succeed;
use crate::table::{Compared, InGuest};

/// Where the image has the workload, and where in the guest's memory it works, as in the other machines.
const WORKLOAD: &str = "/srv/workload";
const DIRECTORY: &str = "/tmp/work";
const BYPASS_DIRECTORY: &str = "/tmp/work-bypass";
/// Where a package has modules.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];
/// What the guest probe says on its console of the programs that it loaded.
const READS: &str = "kernel fields are read ";

/// What every guest is made of.
pub(crate) struct Guests {
    glasshouse: PathBuf,
    probe: PathBuf,
    image: PathBuf,
    cache: PathBuf,
}

impl Guests {
    pub(crate) fn prepare(programs: &Programs, cache: &Path) -> Result<Self> {
        let tree = cache.join("image");
        for folder in ["srv", "proc", "sys", "dev", "tmp", "run"] {
            std::fs::create_dir_all(tree.join(folder))?;
        }
        std::fs::copy(&programs.workload, tree.join(WORKLOAD.trim_start_matches('/')))?;
        let image = cache.join("workload.img");
        let mut build = Command::new(&programs.glasshouse);
        succeed(build.args(["image", "build", "--from"]).arg(&tree).arg("-o").arg(&image))?;
        let (glasshouse, probe) = (programs.glasshouse.clone(), programs.probe.clone());
        Ok(Self { glasshouse, probe, image, cache: cache.to_owned() })
    }

    /// Runs the workload in a machine with this kernel, and compares what the guest says with what the host saw of the same.
    pub(crate) fn watch(&self, kernel: &Path, host: &Seen) -> InGuest {
        let mut found = InGuest::default();
        if !MODULES.iter().any(|folder| kernel.join(folder).is_dir()) {
            // A machine of Debian's kernel cannot find its disk without.
            found.untried = Some("its modules are not in the repositories".to_owned());
            return found;
        }
        match self.seen(kernel, &mut found) {
            Ok(Some(guest)) => {
                found.compared = Compared::of(&host.facts(Some("host")).0, guest.facts(Some("guest")))
            }
            Ok(None) => {}
            Err(error) => found.failed = Some(format!("{error:#}")),
        }
        found
    }

    /// Both receipts, if the command was watched from inside.
    fn seen(&self, kernel: &Path, found: &mut InGuest) -> Result<Option<Seen>> {
        let mut receipts = Vec::new();
        for arguments in [&[DIRECTORY][..], &[BYPASS_DIRECTORY, "bypass"]] {
            let (receipt, said) = self.run(kernel, arguments)?;
            let inside = |list: &str| {
                let vantages = receipt["coverage"][list].as_array();
                vantages.into_iter().flatten().find(|entry| entry["vantage"] == "guest").cloned()
            };
            if inside("vantages").is_none() {
                let why = inside("unavailable").map(|entry| entry["reason"].to_string());
                found.refused = Some(why.unwrap_or_else(|| format!("the receipt does not say why: {said}")));
                return Ok(None);
            }
            let reads = said.split_once(READS).and_then(|(_, rest)| rest.split(['\\', '"']).next());
            found.reads = reads.unwrap_or("?").to_owned();
            receipts.push(receipt);
        }
        let [receipt, bypass] =
            <[Value; 2]>::try_from(receipts).map_err(|_| anyhow::anyhow!("not two receipts"))?;
        let (program, directory) = (WORKLOAD.to_owned(), DIRECTORY.to_owned());
        Ok(Some(Seen { program, directory, doctor: Value::Null, receipt, bypass }))
    }

    /// The receipt, and what was said beside it.
    fn run(&self, kernel: &Path, arguments: &[&str]) -> Result<(Value, String)> {
        let path = self.cache.join("guest-receipt.json");
        let mut run = Command::new(&self.glasshouse);
        run.args(["run", "--backend", "qemu", "--profile", "combined", "--image"])
            .arg(&self.image)
            .arg("--receipt")
            .arg(&path)
            .args(["--", WORKLOAD])
            .args(arguments)
            .env("GLASSHOUSE_GUEST_KERNEL", kernel)
            .env("GLASSHOUSE_GUEST_PROBE", &self.probe)
            // Where the unpacked kernels are kept.
            .env("XDG_CACHE_HOME", &self.cache)
            .env("GLASSHOUSE_LOG", "glasshouse_vm=debug");
        let output = run.stdin(Stdio::null()).output().context("cannot run glasshouse")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let odd = said.lines().find(|line| line.starts_with("line "));
        if !output.status.success() || odd.is_some() {
            let last = said.lines().filter(|line| !line.contains("DEBUG")).collect::<Vec<_>>().join("\n");
            bail!("the workload did not run as expected in the guest ({}): {last}", output.status);
        }
        Ok((serde_json::from_slice(&std::fs::read(&path)?)?, said))
    }
}
