//! What a node mints credentials with, each for one end of one execution's link.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use glasshouse_schema::ids::ExecutionId;
use nkeys::{KeyPair, KeyPairType};

use crate::claims::{self, Allowed, ClaimsError, User};
use crate::credential::{Credential, Subjects};
use crate::ledger::MAX_MESSAGE_BYTES;

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The file of the key cannot be read.
    #[error("the key {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others can mint too.
    #[error("the key {path} has mode {mode:o}, so that others can read it: chmod 600")]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not such a file.
    #[error(
        "{0}: expected the seed of an account's signing key (SA…), and in a line of its own the account's public key (A…)"
    )]
    NoKey(&'static str),
    /// The server's address names a user.
    #[error(
        "the address of the guests' server holds a user or a token: leave it out, every guest has a credential of its own"
    )]
    Named,
    /// The credential cannot be made.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
}

/// Whose credential it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The guest: publishes up and hears down.
    Guest,
    /// Its host: publishes down and hears up.
    Host,
}

/// Mints credentials for the links of one server.
#[derive(Clone)]
pub struct Issuer {
    server: String,
    account: Option<String>,
    key: Arc<KeyPair>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Issuer")
            .field("server", &self.server)
            .field("account", &self.account)
            .field("key", &self.key.public_key())
            .finish()
    }
}

impl Issuer {
    /// For links over `server`, by what a file with a key holds.
    pub fn new(server: &str, key: &str) -> Result<Self, IssuerError> {
        // It stands in errors, and the client would not read it.
        if server.contains('@') {
            return Err(IssuerError::Named);
        }
        let lines = || key.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let seed = lines().find(|line| line.starts_with('S')).ok_or(IssuerError::NoKey("it has no seed"))?;
        let key = KeyPair::from_seed(seed).map_err(|_| IssuerError::NoKey("its seed is none"))?;
        if key.key_pair_type() != KeyPairType::Account {
            return Err(IssuerError::NoKey("its seed is not that of an account"));
        }
        let account = lines().find(|line| line.starts_with('A')).map(str::to_owned);
        if account.as_ref().is_some_and(|account| KeyPair::from_public_key(account).is_err()) {
            return Err(IssuerError::NoKey("its account is no public key"));
        }
        Ok(Self { server: server.to_owned(), account, key: Arc::new(key) })
    }

    /// The same, from a file that nobody else can read.
    pub fn read(server: &str, path: &Path) -> Result<Self, IssuerError> {
        let failed = |source| IssuerError::File { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IssuerError::Readable { path: path.to_owned(), mode });
        }
        Self::new(server, &std::fs::read_to_string(path).map_err(failed)?)
    }

    /// The server, as the host reaches it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Mints a credential, with a key that nothing else has, for a time from now.
    pub fn mint(
        &self,
        execution: ExecutionId,
        role: Role,
        lifetime: Duration,
    ) -> Result<Credential, IssuerError> {
        let key = KeyPair::new_user();
        let subjects = Subjects::of(execution);
        let (publish, subscribe) = match role {
            Role::Guest => (vec![subjects.up.clone()], vec![subjects.down.clone()]),
            Role::Host => (
                vec![subjects.down.clone(), subjects.host.clone()],
                vec![subjects.up.clone(), subjects.host.clone()],
            ),
        };
        let user = User {
            subs: i64::try_from(subscribe.len()).unwrap_or(1),
            publish: Allowed { allow: publish },
            subscribe: Allowed { allow: subscribe },
            payload: i64::try_from(MAX_MESSAGE_BYTES).unwrap_or(i64::MAX),
            // Neither a leaf node nor a browser.
            allowed_connection_types: vec!["STANDARD"],
            issuer_account: self.account.clone().filter(|account| *account != self.key.public_key()),
            ..User::default()
        };
        let expires = claims::unix_s().saturating_add(lifetime.as_secs().max(1));
        let name = match role {
            Role::Guest => format!("guest of {execution}"),
            Role::Host => format!("host of {execution}"),
        };
        let jwt = claims::user(&name, &key.public_key(), user, Some(expires), &self.key)?;
        let seed = key.seed().map_err(ClaimsError::from)?;
        Ok(Credential::new(&jwt, &seed, subjects))
    }
}
