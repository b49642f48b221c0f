//! Files that an execution is given and those that are taken from it, on this machine's side: which ones, and what is in them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use glasshouse_nats::{Bus, digest_of};
use glasshouse_schema::files::{self, FilesError, MAX_FILE_BYTES, StoredFile};
use glob::{MatchOptions, Pattern};

/// `*` and `?` stay within a name; a leading dot is nothing special.
const MATCHING: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Which files are taken out of a working directory.
#[derive(Debug, Clone, Default)]
pub struct Patterns(Vec<Pattern>);

/// A pattern that cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It leads elsewhere, or there are too many.
    #[error(transparent)]
    Path(#[from] FilesError),
    /// It is not understood.
    #[error("`{pattern}` is not a pattern: {problem}")]
    Syntax {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Patterns {
    /// Reads them.
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        files::check_patterns(patterns)?;
        let read = |text: &String| {
            Pattern::new(text)
                .map_err(|error| PatternError::Syntax { pattern: text.clone(), problem: error.msg })
        };
        Ok(Self(patterns.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which of them match a path, or a directory that it is in.
    pub fn matching(&self, path: &str) -> BTreeSet<usize> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let above: Vec<&str> = ends.filter_map(|end| path.get(..end)).collect();
        let matches = |pattern: &Pattern| above.iter().any(|path| pattern.matches_with(path, MATCHING));
        self.0.iter().enumerate().filter(|(_, pattern)| matches(pattern)).map(|(index, _)| index).collect()
    }

    /// All of them, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Pattern::as_str)
    }
}

/// A file of this machine that an execution is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub local: PathBuf,
    /// What a request says of it.
    pub stored: StoredFile,
}

/// Why a local file cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum LocalFileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bus did not take it.
    #[error("cannot store {}: {source}", path.display())]
    NotStored {
        /// The file.
        path: PathBuf,
        /// Why.
        source: glasshouse_nats::Error,
    },
    /// Its place below the working directory is none.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl LocalFile {
    /// Reads `LOCAL` or `LOCAL:PATH`, and the file: PATH is where it is put, by default its name.
    pub fn read(text: &str) -> Result<Self, LocalFileError> {
        let (local, path) = match text.rsplit_once(':') {
            Some((local, path)) => (Path::new(local), path.to_owned()),
            None => {
                let name = Path::new(text).file_name().unwrap_or_default();
                (Path::new(text), name.to_string_lossy().into_owned())
            }
        };
        files::check_path(&path)?;
        let unreadable = |source| LocalFileError::Unreadable { path: local.to_owned(), source };
        let mut file = std::fs::File::open(local).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(unreadable(io::Error::other("it is no regular file")));
        }
        if about.len() > MAX_FILE_BYTES {
            return Err(FilesError::TooLarge { path, bytes: about.len() }.into());
        }
        let (sha256, bytes) = digest_of(&mut file, MAX_FILE_BYTES).map_err(unreadable)?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o777;
        Ok(Self { local: local.to_owned(), stored: StoredFile { path, mode, bytes, sha256 } })
    }

    /// Stores it where node agents fetch it from.
    pub async fn store(&self, bus: &Bus) -> Result<(), LocalFileError> {
        let path = self.local.clone();
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(source) => return Err(LocalFileError::Unreadable { path, source }),
        };
        let StoredFile { sha256, bytes, .. } = self.stored;
        bus.store_file(&mut file, sha256, bytes)
            .await
            .map_err(|source| LocalFileError::NotStored { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_files_and_all_that_is_in_a_directory() {
        let matching = |patterns: &[&str], path: &str| {
            let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            Vec::from_iter(Patterns::new(&patterns).unwrap().matching(path))
        };
        let all = ["out", "*.txt", "**/x?", "a/[bc]/*"];
        for (path, wanted) in [
            ("out", &[0][..]),
            ("out/a/b", &[0]),
            ("outside", &[]),
            ("a.txt", &[1]),
            ("b/a.txt", &[]),
            ("a.txt/b", &[1]),
            ("x1", &[2]),
            ("p/q/x1", &[2]),
            ("a/b/c", &[3]),
            ("a/d/c", &[]),
        ] {
            assert_eq!(matching(&all, path), wanted, "{path}");
        }
        for bad in ["/etc/*", "../a", "a**", "a[", ""] {
            assert!(Patterns::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_local_file_says_where_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("run.sh");
        std::fs::write(&local, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&local, std::os::unix::fs::PermissionsExt::from_mode(0o4751)).unwrap();
        let text = local.to_str().unwrap();
        let file = LocalFile::read(text).unwrap();
        assert_eq!((file.stored.path.as_str(), file.stored.mode, file.stored.bytes), ("run.sh", 0o751, 10));
        assert_eq!(LocalFile::read(&format!("{text}:bin/x")).unwrap().stored.path, "bin/x");
        for bad in [format!("{text}:/etc/passwd"), format!("{text}:../x"), format!("{text}-none")] {
            assert!(LocalFile::read(&bad).is_err(), "{bad}");
        }
        let error = LocalFile::read(&format!("{}:x", dir.path().display())).unwrap_err();
        assert!(error.to_string().contains("regular"), "{error}");
    }
}
