//! The credential of one execution's guest: what is in it, and how a guest takes it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use glasshouse_schema::ids::ExecutionId;
use serde::Deserialize;

/// Where the initramfs of a machine has its credential.
pub const CREDENTIALS: &str = "/glasshouse.creds";
/// More than any credential has.
const MAX_BYTES: u64 = 16 * 1024;
const JWT_BEGIN: &str = "-----BEGIN NATS USER JWT-----";
const JWT_END: &str = "------END NATS USER JWT------";

/// The subjects of one execution's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    /// Where the guest speaks and the host hears.
    pub up: String,
    /// Where the host speaks and the guest hears.
    pub down: String,
    /// Where the host hears itself, and so knows that the server hears it.
    pub host: String,
}

impl Subjects {
    const PREFIX: &str = "glasshouse.v1.guest.";

    /// Those of an execution.
    pub fn of(execution: ExecutionId) -> Self {
        let subject = |end| format!("{}{execution}.{end}", Self::PREFIX);
        Self { up: subject("up"), down: subject("down"), host: subject("host") }
    }

    fn execution_of_up(subject: &str) -> Option<ExecutionId> {
        subject.strip_prefix(Self::PREFIX)?.strip_suffix(".up")?.parse().ok()
    }
}

/// Why a credential cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read, or not removed.
    #[error("the credential {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may have read it.
    #[error("the credential {path} has mode {mode:o}, so that others can read it: chmod 600")]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is none of a guest.
    #[error("this is no credential of one execution's guest: {0}")]
    NotAGuests(&'static str),
}

/// A user's JWT and the seed of its key, as `nsc generate creds` writes them.
#[derive(Clone)]
pub struct Credential {
    text: String,
    subjects: Subjects,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Credential").field("subjects", &self.subjects).finish_non_exhaustive()
    }
}

/// What a guest needs to know of its own JWT. Whether it is true the server judges.
#[derive(Deserialize)]
struct Claims {
    nats: Permissions,
}

#[derive(Deserialize)]
struct Permissions {
    #[serde(rename = "pub")]
    publish: Allowed,
}

#[derive(Deserialize)]
struct Allowed {
    #[serde(default)]
    allow: Vec<String>,
}

impl Credential {
    pub(crate) fn new(jwt: &str, seed: &str, subjects: Subjects) -> Self {
        Self { text: Self::file(jwt, seed), subjects }
    }

    /// A credentials file.
    pub(crate) fn file(jwt: &str, seed: &str) -> String {
        format!(
            "{JWT_BEGIN}\n{jwt}\n{JWT_END}\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    /// Reads one.
    pub fn parse(text: String) -> Result<Self, CredentialError> {
        let not = CredentialError::NotAGuests;
        let jwt = text.split_once(JWT_BEGIN).and_then(|(_, rest)| rest.split_once(JWT_END));
        let (jwt, _) = jwt.ok_or(not("it has no JWT"))?;
        let claims = jwt.trim().split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims: Option<Claims> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
        let claims = claims.ok_or(not("its JWT cannot be read"))?;
        let [up] = claims.nats.publish.allow.as_slice() else {
            return Err(not("it may not publish on one subject alone"));
        };
        let execution = Subjects::execution_of_up(up).ok_or(not("its subject is not that of a guest"))?;
        Ok(Self { text, subjects: Subjects::of(execution) })
    }

    /// Takes it out of a file that nobody else can read, and removes the file, so that the command does not find it.
    pub fn take(path: &Path) -> Result<Self, CredentialError> {
        let failed = |source| CredentialError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CredentialError::Readable { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
        let credential = Self::parse(text)?;
        std::fs::remove_file(path).map_err(failed)?;
        Ok(credential)
    }

    /// As a file holds it. A secret.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The subjects of its execution.
    pub fn subjects(&self) -> &Subjects {
        &self.subjects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Issuer, Role};
    use std::time::Duration;

    fn minted() -> Credential {
        let execution = ExecutionId::from_parts(1, [3; 10]);
        Issuer::new("nats://127.0.0.1:4222", &nkeys::KeyPair::new_account().seed().unwrap())
            .unwrap()
            .mint(execution, Role::Guest, Duration::from_secs(60))
            .unwrap()
    }

    #[test]
    fn an_address_with_a_user_is_refused_without_a_word_of_it() {
        let key = nkeys::KeyPair::new_account().seed().unwrap();
        for server in ["nats://s3cret@127.0.0.1:4222", "ana:s3cret@bus"] {
            let error = Issuer::new(server, &key).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_guest_knows_its_subjects_by_its_credential() {
        let minted = minted();
        let read = Credential::parse(minted.text().to_owned()).unwrap();
        assert_eq!(read.subjects(), minted.subjects());
        assert!(!format!("{read:?}").contains("SU"), "a seed is printed");
        for bad in ["", "-----BEGIN NATS USER JWT-----\nx.y.z\n------END NATS USER JWT------"] {
            assert!(Credential::parse(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_credential_is_taken_once_and_from_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("creds");
        std::fs::write(&path, minted().text()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Credential::take(&path), Err(CredentialError::Readable { mode: 0o644, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        Credential::take(&path).unwrap();
        assert!(!path.exists());
        assert!(matches!(Credential::take(&path), Err(CredentialError::File { .. })));
    }
}
