//! What containerd holds of an image: its unpacked layers, and how its commands are run.

use glasshouse_schema::ids::Digest;
use serde::Deserialize;

use crate::api::GetImage;
use crate::client::Client;

/// An image that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Of what its name stands for: its index, or its manifest. `None` where that is of another kind than SHA-256.
    pub(crate) digest: Option<Digest>,
    /// The name of the snapshot of all its layers: their chain id.
    pub(crate) snapshot: String,
    pub(crate) config: Config,
}

/// What the image says of its commands. The entry point is not used: the command is the caller's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    pub(crate) env: Option<Vec<String>>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
}

#[derive(Deserialize)]
struct Document {
    config: Option<Config>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An index or a manifest.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Entry>,
    config: Option<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// Finds an image by the name that containerd has for it; `Err` says what is missing.
pub(crate) async fn find(client: &Client, name: &str) -> Result<Image, String> {
    let found = client.call(GetImage { name: name.to_owned() }).await.map_err(|status| {
        let hint = match status.code() {
            tonic::Code::NotFound => {
                ": get it with `ctr images pull` or `ctr images import`; `ctr images ls` shows names"
            }
            _ => "",
        };
        format!("{}{hint}", status.message())
    })?;
    let target =
        found.image.and_then(|image| image.target).ok_or("containerd says nothing of its content")?;
    let mut digest = target.digest;
    let known_by = digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    // An index names manifests, and could name another index.
    for _ in 0..4 {
        let manifest: Manifest = read(client, &digest).await?;
        if let Some(config) = manifest.config {
            let document: Document = read(client, &config.digest).await?;
            let snapshot = chain_id(&document.rootfs.diff_ids).ok_or("the image has no layers")?;
            return Ok(Image { digest: known_by, snapshot, config: document.config.unwrap_or_default() });
        }
        let ours = manifest.manifests.into_iter().find(|entry| {
            entry
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os == "linux" && platform.architecture == ARCHITECTURE)
        });
        digest = ours.ok_or_else(|| format!("the image has nothing for linux/{ARCHITECTURE}"))?.digest;
    }
    Err("its indexes name each other".to_owned())
}

/// As images name it.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    std::env::consts::ARCH
};

async fn read<T: for<'a> Deserialize<'a>>(client: &Client, digest: &str) -> Result<T, String> {
    let bytes =
        client.read(digest).await.map_err(|status| format!("reading {digest}: {}", status.message()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("reading {digest}: {error}"))
}

/// The OCI image specification's ChainID: of layers in order, each with what lies below it.
fn chain_id(layers: &[String]) -> Option<String> {
    let (first, rest) = layers.split_first()?;
    let add = |below: String, layer: &String| {
        format!("sha256:{}", Digest::of(format!("{below} {layer}").as_bytes()))
    };
    Some(rest.iter().fold(first.clone(), add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_id_covers_all_layers() {
        let layers: Vec<String> = ["sha256:a", "sha256:b", "sha256:c"].map(str::to_owned).to_vec();
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(&layers[..1]).unwrap(), "sha256:a");
        let two = format!("sha256:{}", Digest::of(b"sha256:a sha256:b"));
        assert_eq!(chain_id(&layers[..2]).unwrap(), two);
        let three = format!("sha256:{}", Digest::of(format!("{two} sha256:c").as_bytes()));
        assert_eq!(chain_id(&layers).unwrap(), three);
    }
}
