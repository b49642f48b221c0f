//! Which kernels Debian offers, and their packages.
//!
//! Asks apt with a root of its own below the cache folder: the machine's sources, lists and packages stay as they are, and
//! nothing is installed. apt checks every signature and sum.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::run::{output, succeed};

/// Suites of the archive. The development ones are often stale on mirrors, and their signatures are checked all the same.
const SUITES: [&str; 9] = [
    "bullseye",
    "bookworm",
    "bookworm-updates",
    "bookworm-backports",
    "trixie",
    "trixie-updates",
    "trixie-backports",
    "sid",
    "experimental",
];
const SECURITY_SUITES: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
const NOT_RELEASED: [&str; 2] = ["sid", "experimental"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel image is never smaller; a package that only depends on others is.
const SMALLEST_IMAGE_BYTES: u64 = 1 << 20;

/// The architectures that Glasshouse compiles its programs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// One kernel that a repository offers.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) arch: Arch,
    /// What `uname -r` says: `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// Debian's version: `6.1.192-2`.
    pub(crate) version: String,
    /// `6.1`.
    pub(crate) series: (u32, u32),
    /// The package that holds the image.
    package: String,
}

impl Kernel {
    /// The package with the image, and those with the modules and their lists where they are others (since Debian 14) and wanted.
    fn packages(&self) -> Vec<String> {
        let modules = self.package.strip_prefix("linux-binary-").filter(|_| self.arch == Arch::Amd64);
        let modules = modules
            .into_iter()
            .flat_map(|release| ["modules", "base"].map(|part| format!("linux-{part}-{release}")));
        std::iter::once(self.package.clone()).chain(modules).collect()
    }

    fn is_cloud(&self) -> bool {
        self.release.contains("-cloud-")
    }

    /// The Debian release that it was built for where the name says so: `deb13`.
    fn debian(&self) -> &str {
        let suffix = self.release.split_once('+').map_or("", |(_, suffix)| suffix);
        suffix.split(['-', '.', '+']).next().unwrap_or_default()
    }
}

/// A kernel's packages as files.
pub(crate) struct Unpacked {
    /// As it is in the package.
    pub(crate) image: PathBuf,
    /// All of it, as `GLASSHOUSE_GUEST_KERNEL` names it.
    pub(crate) folder: PathBuf,
}

/// What there is, and what could not be asked.
pub(crate) struct Catalogue {
    apt_config: PathBuf,
    debs: PathBuf,
    kernels: Vec<Kernel>,
    /// apt's complaints, such as a suite that could not be had.
    pub(crate) complaints: Vec<String>,
}

impl Catalogue {
    /// Reads the package lists of every suite, or takes those of the last time where the network is away.
    pub(crate) fn read(cache: &Path) -> Result<Self> {
        let apt_config = private_root(&cache.join("apt"))?;
        let update = Command::new("apt-get")
            .args(["-q", "update"])
            .env("APT_CONFIG", &apt_config)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get: this command needs a Debian machine")?;
        let complaints: Vec<String> = String::from_utf8_lossy(&update.stderr)
            .lines()
            .filter(|line| line.starts_with("E: ") || line.starts_with("W: "))
            .map(str::to_owned)
            .collect();
        let kernels = kernels(&apt_config)?;
        if kernels.is_empty() {
            bail!("no repository offers a kernel:\n  {}", complaints.join("\n  "));
        }
        let debs = cache.join("debs");
        std::fs::create_dir_all(&debs).with_context(|| format!("cannot make {}", debs.display()))?;
        Ok(Self { apt_config, debs, kernels, complaints })
    }

    /// The builds of every series and Debian release, newest first, of the leaner cloud flavour where there is one.
    pub(crate) fn series(&self, arch: Arch) -> Result<Vec<Vec<Kernel>>> {
        let mut series: BTreeMap<((u32, u32), &str), Vec<Kernel>> = BTreeMap::new();
        for kernel in self.kernels.iter().filter(|kernel| kernel.arch == arch) {
            series.entry((kernel.series, kernel.debian())).or_default().push(kernel.clone());
        }
        let mut all: Vec<Vec<Kernel>> = series.into_values().collect();
        for builds in &mut all {
            if builds.iter().any(Kernel::is_cloud) {
                builds.retain(Kernel::is_cloud);
            }
            newest_first(builds)?;
        }
        Ok(all)
    }

    /// Where apt says that this kernel comes from: `bookworm-security`.
    pub(crate) fn suites(&self, kernel: &Kernel) -> Result<String> {
        let mut madison = Command::new("apt-cache");
        madison.args(["madison", &kernel.package]).env("APT_CONFIG", &self.apt_config);
        let text = output(&mut madison)?;
        let mut suites: Vec<&str> = text
            .lines()
            .filter_map(|line| {
                let mut columns = line.split('|').map(str::trim);
                let (_, version, source) = (columns.next()?, columns.next()?, columns.next()?);
                let suite = source.split(' ').nth(1)?.split('/').next()?;
                (version == kernel.version).then_some(suite)
            })
            .collect();
        suites.sort_unstable();
        suites.dedup();
        Ok(suites.join(", "))
    }

    /// The kernel with what it needs to boot here, unpacked below the cache folder; downloaded if it is not there.
    pub(crate) fn unpacked(&self, kernel: &Kernel) -> Result<Unpacked> {
        let folder =
            self.debs.join(format!("{}_{}_{}", kernel.release, kernel.version, kernel.arch.debian()));
        if !folder.exists() {
            // Renamed into place: a later run never sees half a package.
            let partial = PathBuf::from(format!("{}.partial", folder.display()));
            for package in kernel.packages() {
                match self.unpack(&package, kernel, &partial) {
                    // Without modules it boots, and is no guest's.
                    Err(error) if package != kernel.package => println!("{package}: {error:#}"),
                    unpacked => unpacked?,
                }
            }
            std::fs::rename(&partial, &folder)?;
        }
        let found = glasshouse_images::kernel::Kernel::find(&folder)?;
        Ok(Unpacked { image: found.image, folder })
    }

    fn unpack(&self, package: &str, kernel: &Kernel, to: &Path) -> Result<()> {
        let (arch, version) = (kernel.arch.debian(), &kernel.version);
        let mut download = Command::new("apt-get");
        download
            .args(["-q", "download", &format!("{package}:{arch}={version}")])
            .env("APT_CONFIG", &self.apt_config)
            .current_dir(&self.debs);
        succeed(&mut download)?;
        // apt writes the colon of an epoch, and nothing else, in another way.
        let deb = self.debs.join(format!("{package}_{}_{arch}.deb", version.replace(':', "%3a")));
        succeed(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(to))?;
        Ok(std::fs::remove_file(&deb)?)
    }
}

/// A configuration that points apt at its own folders; returns the file for `APT_CONFIG`.
fn private_root(root: &Path) -> Result<PathBuf> {
    for folder in ["state/lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/apt.conf.d"] {
        std::fs::create_dir_all(root.join(folder))
            .with_context(|| format!("cannot make {}", root.join(folder).display()))?;
    }
    let (archive, security) = mirrors();
    let mut sources = String::new();
    let all = SUITES.iter().map(|suite| (&archive, suite));
    for (mirror, suite) in all.chain(SECURITY_SUITES.iter().map(|suite| (&security, suite))) {
        let stale = if NOT_RELEASED.contains(suite) { " check-valid-until=no" } else { "" };
        sources
            .push_str(&format!("deb [arch=amd64,arm64 signed-by={KEYRING}{stale}] {mirror} {suite} main\n"));
    }
    std::fs::write(root.join("etc/sources.list"), sources)?;
    let root = root.canonicalize()?;
    let at = root.display();
    let config = format!(
        "Dir \"{at}\";\nDir::State \"{at}/state\";\nDir::State::status \"/dev/null\";\nDir::Cache \"{at}/cache\";\n\
         Dir::Etc \"{at}/etc\";\nDir::Etc::sourceparts \"/dev/null\";\nAPT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
         APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Retries \"2\";\n"
    );
    let path = root.join("apt.conf");
    std::fs::write(&path, config)?;
    Ok(path)
}

/// The mirrors that this machine uses for Debian and for its security updates, else Debian's own.
fn mirrors() -> (String, String) {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let text = output(&mut command).unwrap_or_default();
    let of = |label: &str| {
        text.lines().find_map(|line| line.strip_prefix("Debian ")?.strip_prefix(label)).map(|uri| uri.trim())
    };
    (
        of("Debian ").unwrap_or("http://deb.debian.org/debian").to_owned(),
        of("Debian-Security ").unwrap_or("http://deb.debian.org/debian-security").to_owned(),
    )
}

fn kernels(apt_config: &Path) -> Result<Vec<Kernel>> {
    let mut search = Command::new("apt-cache");
    search
        .args(["search", "--full", "--names-only", "^linux-(image|binary)-[0-9].*-(amd64|arm64)$"])
        .env("APT_CONFIG", apt_config);
    let text = output(&mut search)?;
    Ok(text.split("\n\n").filter_map(kernel).collect())
}

/// The kernel that a package record is about, if it holds an image we want.
fn kernel(record: &str) -> Option<Kernel> {
    let field = |name: &str| record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let package = field("Package")?;
    let release = package.strip_prefix("linux-image-").or_else(|| package.strip_prefix("linux-binary-"))?;
    // Real-time kernels preempt elsewhere; their types and hooks are the same.
    if release.contains("-rt-") || field("Size")?.parse::<u64>().ok()? < SMALLEST_IMAGE_BYTES {
        return None;
    }
    let arch = match field("Architecture")? {
        "amd64" => Arch::Amd64,
        "arm64" => Arch::Arm64,
        _ => return None,
    };
    let version = field("Version")?;
    let series = series(version)?;
    let package = package.to_owned();
    Some(Kernel { arch, release: release.to_owned(), version: version.to_owned(), series, package })
}

/// `6.12.117-1~deb12u1` and `7.3~rc7-1` are of `6.12` and `7.3`.
fn series(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split(['-', '~', '+']).next()?;
    let mut numbers = upstream.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// By Debian's order of versions, which only dpkg knows.
fn newest_first(builds: &mut [Kernel]) -> Result<()> {
    let mut failed = None;
    builds.sort_by(|one, other| {
        let newer =
            Command::new("dpkg").args(["--compare-versions", &one.version, "gt", &other.version]).status();
        match newer {
            Ok(status) if status.success() => Ordering::Less,
            Ok(_) if one.version == other.version => Ordering::Equal,
            Ok(_) => Ordering::Greater,
            Err(error) => {
                failed = Some(error);
                Ordering::Equal
            }
        }
    });
    failed.map_or(Ok(()), |error| Err(error).context("cannot run dpkg"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Arch, kernel, series};

    #[test]
    fn a_series_is_read_from_every_form_of_version() {
        assert_eq!(series("6.1.192-2"), Some((6, 1)));
        assert_eq!(series("6.12.117-1~deb12u1"), Some((6, 12)));
        assert_eq!(series("7.3~rc7-1~exp1"), Some((7, 3)));
        assert_eq!(series("nonsense"), None);
    }

    #[test]
    fn a_record_without_an_image_is_no_kernel() {
        let record = |package: &str, size: u64| {
            format!("Package: {package}\nArchitecture: arm64\nVersion: 7.3.4-1\nSize: {size}\n")
        };
        let found = kernel(&record("linux-binary-7.3.4-cloud-arm64", 2 << 20)).unwrap();
        assert_eq!(
            (found.arch, found.release.as_str(), found.debian()),
            (Arch::Arm64, "7.3.4-cloud-arm64", "")
        );
        let found = kernel(&record("linux-binary-6.12.90+deb12.1-cloud-arm64", 2 << 20)).unwrap();
        assert_eq!(found.debian(), "deb12");
        let found = kernel(&record("linux-image-6.12.74+deb13+1-cloud-arm64", 2 << 20)).unwrap();
        assert_eq!(found.debian(), "deb13");
        assert!(kernel(&record("linux-image-7.3.4-cloud-arm64", 1900)).is_none(), "depends on linux-binary");
        assert!(kernel(&record("linux-image-7.3.4-rt-arm64", 2 << 20)).is_none());
    }
}
