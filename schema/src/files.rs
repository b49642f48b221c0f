//! Files that are put into an execution's working directory, and those that are taken out of it.
//!
//! A document names them and says their digests; the bytes lie in an object store under these digests, for as long as its
//! bucket keeps them. All of it is bounded, so that what names them fits into one document.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::canonical::MAX_INTEGER;
use crate::ids::Digest;

/// Most files that one execution is given, and most that are taken from it.
pub const MAX_FILES: usize = 256;
/// Most patterns that say which files are taken.
pub const MAX_PATTERNS: usize = 64;
/// Most bytes of one file.
pub const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Most bytes of all files that one execution is given, and of all that are taken from it.
pub const MAX_FILES_BYTES: u64 = 512 * 1024 * 1024;
/// Most bytes of one path.
pub const MAX_PATH_BYTES: usize = 512;
/// Most bytes of all paths of a list.
pub const MAX_PATHS_BYTES: usize = 32 * 1024;
/// Most files that are named of those which were not taken.
pub const MAX_SKIPPED: usize = 32;

/// A file in the object store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct StoredFile {
    /// Where it belongs, below the working directory.
    pub path: String,
    /// Its permission bits (`0o644` is 420).
    pub mode: u32,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of what is in it.
    pub sha256: Digest,
}

/// A file, or a pattern, of which nothing was taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct SkippedFile {
    /// Its path below the working directory.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What was put into a working directory and what was taken out of it, each list sorted by path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Files {
    /// Files that were there when the command started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<StoredFile>,
    /// Files that were taken after its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<StoredFile>,
    /// What was asked for and not taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedFile>,
    /// How many more were not taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_skipped: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Files {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same whatever order it was told in, with numbers that a document can hold.
    pub fn sorted(mut self) -> Self {
        for file in self.inputs.iter_mut().chain(&mut self.outputs) {
            file.bytes = file.bytes.min(MAX_INTEGER);
        }
        self.inputs.sort();
        self.outputs.sort();
        self.skipped.sort();
        self.more_skipped = self.more_skipped.min(MAX_INTEGER);
        self
    }
}

/// Why files cannot be given or taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// It does not name something below the working directory.
    #[error("the path `{0}` is not one of a file below the working directory: {1}")]
    BadPath(String, &'static str),
    /// Too many entries.
    #[error("{0} {1} are more than the {2} that an execution has")]
    TooMany(usize, &'static str, usize),
    /// Too long a list.
    #[error("the paths have {0} bytes in all, more than {MAX_PATHS_BYTES}")]
    PathsTooLong(usize),
    /// A file is too large.
    #[error("the file `{path}` has {bytes} bytes, more than the {MAX_FILE_BYTES} that are taken")]
    TooLarge {
        /// Its path.
        path: String,
        /// Its length.
        bytes: u64,
    },
    /// All files together are.
    #[error("the files have {0} bytes in all, more than the {MAX_FILES_BYTES} that are taken")]
    AllTooLarge(u64),
    /// Setuid, setgid or sticky, or no mode at all.
    #[error("the mode {mode:o} of the file `{path}` has more than permission bits")]
    BadMode {
        /// Its path.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// Two files at one place, or one where the other needs a directory.
    #[error("there are two files at `{0}`")]
    Twice(String),
}

/// Checks the files that an execution is to be given.
pub fn check_inputs(files: &[StoredFile]) -> Result<(), FilesError> {
    check_paths(files.iter().map(|file| file.path.as_str()), "files", MAX_FILES)?;
    let mut all = 0_u64;
    for StoredFile { path, mode, bytes, .. } in files {
        if *bytes > MAX_FILE_BYTES {
            return Err(FilesError::TooLarge { path: path.clone(), bytes: *bytes });
        }
        if mode & !0o777 != 0 {
            return Err(FilesError::BadMode { path: path.clone(), mode: *mode });
        }
        all += bytes;
    }
    if all > MAX_FILES_BYTES {
        return Err(FilesError::AllTooLarge(all));
    }
    // As lists of names a file comes right before what would be below it.
    let mut paths: Vec<Vec<&str>> = files.iter().map(|file| file.path.split('/').collect()).collect();
    paths.sort();
    match paths.windows(2).find(|pair| pair[1].starts_with(&pair[0])) {
        Some(pair) => Err(FilesError::Twice(pair[0].join("/"))),
        None => Ok(()),
    }
}

/// Checks the patterns that say which files are taken, as far as they are paths.
pub fn check_patterns(patterns: &[String]) -> Result<(), FilesError> {
    check_paths(patterns.iter().map(String::as_str), "patterns", MAX_PATTERNS)
}

fn check_paths<'a>(
    paths: impl ExactSizeIterator<Item = &'a str>,
    what: &'static str,
    most: usize,
) -> Result<(), FilesError> {
    if paths.len() > most {
        return Err(FilesError::TooMany(paths.len(), what, most));
    }
    let mut all = 0;
    for path in paths {
        check_path(path)?;
        all += path.len();
    }
    if all > MAX_PATHS_BYTES { Err(FilesError::PathsTooLong(all)) } else { Ok(()) }
}

/// Whether a path leads to something below the directory that it is taken from, whatever is there.
pub fn check_path(path: &str) -> Result<(), FilesError> {
    let problem = if path.is_empty() {
        "it is empty"
    } else if path.len() > MAX_PATH_BYTES {
        "it is longer than 512 bytes"
    } else if path.starts_with('/') {
        "it is absolute"
    } else if path.chars().any(char::is_control) {
        "it holds a control character"
    } else {
        let bad = |name: &str| matches!(name, "" | "." | "..") || name.len() > 255;
        match path.split('/').any(bad) {
            true => "a part of it is empty, `.`, `..` or longer than 255 bytes",
            false => return Ok(()),
        }
    };
    Err(FilesError::BadPath(path.chars().take(MAX_PATH_BYTES).collect(), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> StoredFile {
        StoredFile { path: path.into(), mode: 0o644, bytes: 1, sha256: Digest::of(b"x") }
    }

    #[test]
    fn a_path_stays_below_its_directory() {
        for good in ["a", "a/b.c", "..a", ".hidden/…", "a b"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        let long = ["x"; 300].join("/");
        for bad in
            ["", "/", "/a", "..", "a/../b", "./a", "a//b", "a/", "a\0", "a\nb", &long, &"x".repeat(256)]
        {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_files_cannot_be_at_one_place() {
        assert_eq!(check_inputs(&[file("a"), file("a.b"), file("b/c"), file("b/d")]), Ok(()));
        let twice =
            |files: &[StoredFile]| matches!(check_inputs(files), Err(FilesError::Twice(path)) if path == "a");
        assert!(twice(&[file("a"), file("a")]));
        // What sorts between them does not hide it.
        assert!(twice(&[file("a/b"), file("a.b"), file("a")]));
    }

    #[test]
    fn what_is_too_large_or_too_much_is_refused() {
        let sized = |path: &str, bytes| StoredFile { bytes, ..file(path) };
        let refused = |files: &[StoredFile]| check_inputs(files).unwrap_err();
        assert!(matches!(refused(&[sized("a", MAX_FILE_BYTES + 1)]), FilesError::TooLarge { .. }));
        let all = ["a", "b", "c"].map(|path| sized(path, MAX_FILE_BYTES));
        assert!(matches!(refused(&all), FilesError::AllTooLarge(_)));
        assert!(matches!(refused(&[StoredFile { mode: 0o4755, ..file("a") }]), FilesError::BadMode { .. }));
        let many: Vec<StoredFile> = (0..=MAX_FILES).map(|n| file(&n.to_string())).collect();
        assert!(matches!(refused(&many), FilesError::TooMany(257, ..)));
        let long: Vec<StoredFile> = (0..100).map(|n| file(&format!("{n}/{}/{0}", "x".repeat(200)))).collect();
        assert!(matches!(refused(&long), FilesError::PathsTooLong(_)));
    }

    /// What is said of the largest lists fits into the document that says it, whatever their paths are made of.
    #[test]
    fn the_largest_lists_fit_into_their_document() {
        let path = |n: usize| format!("{n:03}{}", "\"".repeat(MAX_PATHS_BYTES / MAX_FILES - 3));
        let list: Vec<StoredFile> = (0..MAX_FILES)
            .map(|n| StoredFile { bytes: MAX_FILE_BYTES, mode: 0o777, ..file(&path(n)) })
            .collect();
        assert_eq!(list.iter().map(|file| file.path.len()).sum::<usize>(), MAX_PATHS_BYTES);
        let skipped = (0..MAX_SKIPPED)
            .map(|_| SkippedFile { path: "\"".repeat(MAX_PATH_BYTES), reason: "r".repeat(512) })
            .collect();
        let files = Files { inputs: list.clone(), outputs: list, skipped, more_skipped: MAX_INTEGER };
        let bytes = crate::canonical::to_vec(&files).unwrap();
        assert!(bytes.len() + 4096 < crate::lifecycle::MAX_LIFECYCLE_BYTES, "{}", bytes.len());
    }
}
