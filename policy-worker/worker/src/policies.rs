//! Policies from files and directories, every problem of all of them reported at once.

use std::io::Read;
use std::path::{Path, PathBuf};

use glasshouse_eval::{MAX_POLICY_BYTES, Policy, PolicyError};

/// Why policies could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory holds none.
    #[error("there is no policy in {}: expected files that end in .yaml or .yml", .0.display())]
    Empty(PathBuf),
    /// Some of them are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"))]
    Wrong(Vec<PolicyError>),
}

/// Loads policies from files, and from the `.yaml` and `.yml` files of directories in the order of their names.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Policy>, PoliciesError> {
    let mut policies = Vec::new();
    let mut wrong = Vec::new();
    for path in paths {
        for file in files(path)? {
            match Policy::parse(&read(&file)?, &file.display().to_string()) {
                Ok(policy) => policies.push(policy),
                Err(error) => wrong.push(error),
            }
        }
    }
    match wrong.is_empty() {
        true => Ok(policies),
        false => Err(PoliciesError::Wrong(wrong)),
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, PoliciesError> {
    let failed = |source| PoliciesError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(PoliciesError::Empty(path.to_owned())),
        false => Ok(files),
    }
}

fn read(path: &Path) -> Result<String, PoliciesError> {
    let failed = |source| PoliciesError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    // One more than allowed, so that the parser can say that it is too large.
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_POLICY_BYTES as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "version: v1\nname: good\nrules:\n  - {id: r, message: m, expression: 'true'}\n";

    #[test]
    fn directories_are_read_in_order_and_every_problem_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(matches!(load(&[dir.path().to_owned()]), Err(PoliciesError::Empty(_))));
        write("b.yml", GOOD);
        write("a.yaml", &GOOD.replace("good", "first"));
        write("README.md", "not a policy");
        let names: Vec<String> = load(&[dir.path().to_owned()])
            .unwrap()
            .iter()
            .map(|policy| policy.reference().name.to_string())
            .collect();
        assert_eq!(names, ["first", "good"]);

        write("c.yaml", "version: v1\nname: c\nrules: 1\n");
        write("d.yaml", "version: v1\nname: d\nrules: 2\n");
        let error = load(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("c.yaml:3:8") && error.contains("d.yaml:3:8"), "{error}");
        let error = load(&[dir.path().join("missing.yaml")]).unwrap_err().to_string();
        assert!(error.contains("missing.yaml"), "{error}");
    }
}
