//! A server's configuration in operator mode, for where there is no `nsc`: an operator, its accounts, and the keys of both.
//!
//! ```text
//! operator ─┬─ SYS          the server's own
//!           ├─ GLASSHOUSE   JetStream and everything of Glasshouse's bus
//!           └─ GUESTS       the links of guests, and nothing else: no JetStream, no leaf nodes
//! ```
//! Guests are in an account of their own, so that no permission of theirs stands between them and the streams.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use nkeys::KeyPair;

use crate::claims::{self, ClaimsError, User};
use crate::credential::Credential;

/// A configuration and what belongs to it. All but the configuration is secret.
#[derive(Debug)]
pub struct Setup {
    /// What the server's configuration includes: who signs, and the accounts.
    pub configuration: String,
    /// Files by name: the seeds of the keys, credentials, and the key that nodes mint guests' credentials with.
    pub secrets: Vec<(&'static str, String)>,
}

/// The file with [`Setup::configuration`].
pub const CONFIGURATION: &str = "operator.conf";
/// The file of [`Setup::secrets`] that nodes mint guests' credentials with.
pub const GUESTS_KEY: &str = "guests.key";
/// The file of [`Setup::secrets`] with a credential for all of the account GLASSHOUSE.
pub const GLASSHOUSE_CREDENTIALS: &str = "glasshouse.creds";

impl Setup {
    /// Writes all of it into a directory, which nobody else can read.
    ///
    /// # Errors
    /// What the system says; also of a file that is there, which may be the only copy of a key.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let configuration = (CONFIGURATION, &self.configuration);
        for (name, text) in self.secrets.iter().map(|(name, text)| (*name, text)).chain([configuration]) {
            let path = dir.join(name);
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(named)?;
            file.write_all(text.as_bytes()).map_err(named)?;
        }
        Ok(())
    }
}

/// Makes one with new keys.
///
/// # Errors
/// A key that cannot be made or written.
pub fn setup() -> Result<Setup, ClaimsError> {
    let operator = KeyPair::new_operator();
    let [system, glasshouse, guests, minting] = std::array::from_fn(|_| KeyPair::new_account());
    let accounts = [
        (&system, "SYS", Vec::new(), false),
        (&glasshouse, "GLASSHOUSE", Vec::new(), true),
        (&guests, "GUESTS", vec![minting.public_key()], false),
    ];
    let mut configuration = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n",
        claims::operator("glasshouse", system.public_key(), &operator)?,
        system.public_key()
    );
    for (key, name, signing, has_jetstream) in accounts {
        let public = key.public_key();
        let jwt = claims::account(name, &public, signing, has_jetstream, &operator)?;
        configuration.push_str(&format!("  # {name}\n  {public}: {jwt}\n"));
    }
    configuration.push_str("}\n");

    let member = KeyPair::new_user();
    let jwt = claims::user("glasshouse", &member.public_key(), User::default(), None, &glasshouse)?;
    let guests_key = format!(
        "# Mints the credentials of guests, each for one execution. Whoever has it can speak for any guest.\n{}\n{}\n",
        guests.public_key(),
        minting.seed()?
    );
    let secrets = vec![
        (GUESTS_KEY, guests_key),
        (GLASSHOUSE_CREDENTIALS, Credential::file(&jwt, &member.seed()?)),
        ("operator.nk", operator.seed()?),
        ("sys.nk", system.seed()?),
        ("glasshouse.nk", glasshouse.seed()?),
        ("guests.nk", guests.seed()?),
    ];
    Ok(Setup { configuration, secrets })
}
