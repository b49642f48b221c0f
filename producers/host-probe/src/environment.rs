//! Which environment variables an exec is told with: those that make a program run other code than its own. Their names
//! only, never their values.

/// Sorted.
const WATCHED: [&str; 29] = [
    "BASH_ENV",
    "CLASSPATH",
    "DYLD_INSERT_LIBRARIES",
    "ENV",
    "GCONV_PATH",
    "GIT_EXEC_PATH",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GLIBC_TUNABLES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_ORIGIN_PATH",
    "LD_PRELOAD",
    "LD_PROFILE",
    "LOCPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PROMPT_COMMAND",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "RUBYLIB",
    "RUBYOPT",
    "_JAVA_OPTIONS",
];

/// The names of those of the variables (`NAME=value`) that are watched, each once, sorted.
pub(crate) fn watched<'a>(variables: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = variables
        .filter_map(|variable| {
            let end = variable.iter().position(|byte| *byte == b'=')?;
            let name = variable.get(..end)?;
            WATCHED.binary_search_by(|known| known.as_bytes().cmp(name)).is_ok().then_some(name)
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watched_names_are_told_without_their_values() {
        assert!(WATCHED.is_sorted());
        let variables =
            ["PATH=/bin", "LD_PRELOAD=/tmp/x.so", "ENV=", "LD_PRELOAD=/tmp/y.so", "LD_PRELOADED=1", "=", ""];
        let names = watched(variables.iter().map(|variable| variable.as_bytes()));
        assert_eq!(names, [b"ENV".as_slice(), b"LD_PRELOAD"]);
    }
}
