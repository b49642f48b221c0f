//! An image in an OCI layout (image-spec v1.1, image-layout.md): which manifest, its layers, each checked against its digest.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Descriptor, DigestAlgorithm, ImageConfiguration, ImageIndex, ImageManifest, MediaType,
};
use sha2::{Digest as _, Sha256};

use super::tree::Tree;
use super::{Config, ImageError, hex, layer};
use crate::decompress;

/// What a layout is known by.
pub(super) const MARK: &str = "oci-layout";
const TAG: &str = "org.opencontainers.image.ref.name";
/// Index, manifest and configuration: each is a few KiB.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// An index may name other indexes.
const MAX_DEPTH: usize = 4;

/// Applies the layers of an image to a tree; returns the digest of its manifest and what it says of running it.
pub(super) fn add(tree: &mut Tree, layout: &Path, tag: Option<&str>) -> Result<(String, Config), ImageError> {
    let layout = Layout(layout);
    let manifest = layout.choose(tag)?;
    let digest = manifest.digest().to_string();
    let manifest: ImageManifest = layout.document(&manifest)?;
    let config: ImageConfiguration = layout.document(manifest.config())?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers().len() {
        return Err(layout.wrong("configuration and manifest name different numbers of layers"));
    }
    for (descriptor, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let (blob, path) = layout.blob(descriptor)?;
        let mut blob = Hashing { inner: blob.take(descriptor.size()), hash: Sha256::new() };
        let found = match descriptor.media_type() {
            MediaType::ImageLayer => layer::apply(tree, BufReader::new(&mut blob)),
            MediaType::ImageLayerGzip => layer::apply(tree, decompress::gzip(BufReader::new(&mut blob))),
            MediaType::ImageLayerZstd => {
                layer::apply(tree, decompress::zstd(BufReader::new(&mut blob)).map_err(ImageError::Read)?)
            }
            // Docker's own names for the same.
            MediaType::Other(name) if name.ends_with("docker.image.rootfs.diff.tar.gzip") => {
                layer::apply(tree, decompress::gzip(BufReader::new(&mut blob)))
            }
            other => return Err(layout.wrong(format!("a layer is of type {other}, which is not known here"))),
        };
        // A blob that is not what it should be explains every other error.
        io::copy(&mut blob, &mut io::sink()).map_err(ImageError::file(&path))?;
        same(&path, descriptor.digest().digest(), &hex(&blob.hash.finalize()))?;
        same(&path, diff_id.strip_prefix("sha256:").unwrap_or(diff_id), &found?)?;
    }
    let run = config.config().clone().unwrap_or_default();
    let config = Config {
        entrypoint: run.entrypoint().clone().unwrap_or_default(),
        cmd: run.cmd().clone().unwrap_or_default(),
        env: run.env().clone().unwrap_or_default(),
        working_dir: run.working_dir().clone(),
        user: run.user().clone(),
    };
    Ok((digest, config))
}

struct Layout<'a>(&'a Path);

impl Layout<'_> {
    fn wrong(&self, what: impl Into<String>) -> ImageError {
        ImageError::Layout { path: self.0.to_owned(), what: what.into() }
    }

    /// The manifest that has this tag, or the only one, for this machine's architecture.
    fn choose(&self, tag: Option<&str>) -> Result<Descriptor, ImageError> {
        let path = self.0.join("index.json");
        let file = File::open(&path).map_err(ImageError::file(&path))?;
        let mut index: ImageIndex = self.parse(&path, file)?;
        let named = |descriptor: &Descriptor| descriptor.annotations().as_ref()?.get(TAG).cloned();
        if let Some(tag) = tag {
            let tags: Vec<String> = index.manifests().iter().filter_map(named).collect();
            let chosen =
                index.manifests().iter().filter(|descriptor| named(descriptor).as_deref() == Some(tag));
            let chosen: Vec<Descriptor> = chosen.cloned().collect();
            if chosen.is_empty() {
                return Err(self.wrong(format!("no image has the tag {tag}; there are: {}", tags.join(", "))));
            }
            index.set_manifests(chosen);
        }
        let architecture = oci_spec::image::Arch::default();
        for _ in 0..MAX_DEPTH {
            let fits = |descriptor: &&Descriptor| {
                descriptor.platform().as_ref().is_none_or(|platform| *platform.architecture() == architecture)
            };
            let fitting: Vec<&Descriptor> = index.manifests().iter().filter(fits).collect();
            let chosen = match fitting.as_slice() {
                [] => return Err(self.wrong(format!("it holds no image for {architecture}"))),
                [one] => (*one).clone(),
                many => {
                    let tags: Vec<String> = many.iter().copied().filter_map(named).collect();
                    return Err(
                        self.wrong(format!("choose one of its images by its tag: {}", tags.join(", ")))
                    );
                }
            };
            match chosen.media_type() {
                MediaType::ImageIndex => index = self.document(&chosen)?,
                _ => return Ok(chosen),
            }
        }
        Err(self.wrong("its indexes name further indexes without an end"))
    }

    /// Opens a blob, whose digest decides its path.
    fn blob(&self, descriptor: &Descriptor) -> Result<(File, PathBuf), ImageError> {
        let digest = descriptor.digest();
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(self.wrong(format!("{digest} is no SHA-256, which is all that is checked here")));
        }
        // The crate lets only the right number of hex digits through.
        let path = self.0.join("blobs/sha256").join(digest.digest());
        let file = File::open(&path).map_err(ImageError::file(&path))?;
        let bytes = file.metadata().map_err(ImageError::file(&path))?.len();
        if bytes != descriptor.size() {
            return Err(self.wrong(format!("blob {digest} is of {bytes} bytes, not {}", descriptor.size())));
        }
        Ok((file, path))
    }

    fn document<T: serde::de::DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, ImageError> {
        let (file, path) = self.blob(descriptor)?;
        let mut blob = Hashing { inner: file, hash: Sha256::new() };
        let document = self.parse(&path, &mut blob);
        same(&path, descriptor.digest().digest(), &hex(&blob.hash.finalize()))?;
        document
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, path: &Path, file: impl Read) -> Result<T, ImageError> {
        let mut text = Vec::new();
        file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text).map_err(ImageError::file(path))?;
        serde_json::from_slice(&text).map_err(|error| self.wrong(format!("{}: {error}", path.display())))
    }
}

fn same(path: &Path, expected: &str, found: &str) -> Result<(), ImageError> {
    if expected == found {
        return Ok(());
    }
    Err(ImageError::Digest { path: path.to_owned(), expected: expected.to_owned(), found: found.to_owned() })
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
