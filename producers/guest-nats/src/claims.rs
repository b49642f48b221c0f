//! JWTs of NATS, version 2: the few claims that we make, after the types of `github.com/nats-io/jwt/v2` and ADR-14.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde::Serialize;

/// Why there is no JWT.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// A key of NATS does not do what it should.
    #[error("a key of NATS: {0}")]
    Key(#[from] nkeys::error::Error),
    /// The claims cannot be written as JSON.
    #[error("the claims of a JWT: {0}")]
    Json(#[from] serde_json::Error),
}

/// What is the same for everybody.
const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
const VERSION: u8 = 2;
/// No limit.
const ANY: i64 = -1;

#[derive(Serialize)]
struct Claims<'c, T> {
    jti: &'c str,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    iss: String,
    name: &'c str,
    sub: &'c str,
    nats: Typed<T>,
}

#[derive(Serialize)]
struct Typed<T> {
    #[serde(flatten)]
    body: T,
    #[serde(rename = "type")]
    kind: &'static str,
    version: u8,
}

/// Subjects that are allowed; none stands for all of them.
#[derive(Serialize, Default)]
pub(crate) struct Allowed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow: Vec<String>,
}

/// `UserPermissionLimits` and `User` of user_claims.go.
#[derive(Serialize)]
pub(crate) struct User {
    #[serde(rename = "pub")]
    pub(crate) publish: Allowed,
    #[serde(rename = "sub")]
    pub(crate) subscribe: Allowed,
    /// Most subscriptions of a connection.
    pub(crate) subs: i64,
    /// Not held by any server.
    pub(crate) data: i64,
    /// Most bytes of a message.
    pub(crate) payload: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allowed_connection_types: Vec<&'static str>,
    /// The account, where the issuer is a signing key of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) issuer_account: Option<String>,
}

impl Default for User {
    fn default() -> Self {
        Self {
            publish: Allowed::default(),
            subscribe: Allowed::default(),
            subs: ANY,
            data: ANY,
            payload: ANY,
            allowed_connection_types: Vec::new(),
            issuer_account: None,
        }
    }
}

/// `OperatorLimits` of account_claims.go. What is left out is none.
#[derive(Serialize)]
struct Limits {
    subs: i64,
    data: i64,
    payload: i64,
    imports: i64,
    exports: i64,
    wildcards: bool,
    conn: i64,
    leaf: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_storage: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_storage: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    streams: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<i64>,
}

#[derive(Serialize)]
struct Permissions {
    #[serde(rename = "pub")]
    publish: Allowed,
    #[serde(rename = "sub")]
    subscribe: Allowed,
}

#[derive(Serialize)]
struct Account {
    limits: Limits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    signing_keys: Vec<String>,
    default_permissions: Permissions,
}

#[derive(Serialize)]
struct Operator {
    system_account: String,
}

pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The JWT of a user.
pub(crate) fn user(
    name: &str,
    key: &str,
    user: User,
    expires_unix_s: Option<u64>,
    by: &KeyPair,
) -> Result<String, ClaimsError> {
    sign(name, key, expires_unix_s, Typed { body: user, kind: "user", version: VERSION }, by)
}

/// The JWT of an account: everything is allowed in it, and with JetStream or without.
pub(crate) fn account(
    name: &str,
    key: &str,
    signing_keys: Vec<String>,
    has_jetstream: bool,
    by: &KeyPair,
) -> Result<String, ClaimsError> {
    let stored = has_jetstream.then_some(ANY);
    let limits = Limits {
        subs: ANY,
        data: ANY,
        payload: ANY,
        imports: ANY,
        exports: ANY,
        wildcards: true,
        conn: ANY,
        // Leaf nodes of ours are made by operators.
        leaf: if has_jetstream { ANY } else { 0 },
        mem_storage: stored,
        disk_storage: stored,
        streams: stored,
        consumer: stored,
    };
    let default_permissions = Permissions { publish: Allowed::default(), subscribe: Allowed::default() };
    let body = Account { limits, signing_keys, default_permissions };
    sign(name, key, None, Typed { body, kind: "account", version: VERSION }, by)
}

/// The JWT of an operator, which signs itself.
pub(crate) fn operator(name: &str, system_account: String, by: &KeyPair) -> Result<String, ClaimsError> {
    let body = Operator { system_account };
    sign(name, &by.public_key(), None, Typed { body, kind: "operator", version: VERSION }, by)
}

fn sign<T: Serialize>(
    name: &str,
    subject: &str,
    exp: Option<u64>,
    nats: Typed<T>,
    by: &KeyPair,
) -> Result<String, ClaimsError> {
    // Every key here is made for one token.
    let claims = Claims { jti: subject, iat: unix_s(), exp, iss: by.public_key(), name, sub: subject, nats };
    let claims = serde_json::to_vec(&claims)?;
    let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
    let signature = by.sign(body.as_bytes())?;
    Ok(format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
