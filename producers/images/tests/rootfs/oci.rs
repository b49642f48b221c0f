use std::fs;
use std::path::PathBuf;

use ::tar::EntryType;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar::archive;
use super::*;

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture, as Go calls it.
fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        let layout = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(layout.0.path().join("blobs/sha256")).unwrap();
        fs::write(layout.0.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        layout
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.0.path().join("blobs/sha256").join(digest)
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    fn document(&self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, &serde_json::to_vec(document).unwrap())
    }

    /// An image of unpacked layers, each stored as it says.
    fn image(&self, layers: &[(&str, Vec<u8>)]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| format!("sha256:{}", digest(tar))).collect();
        let blobs = layers.iter().map(|(packed, tar)| match *packed {
            "+gzip" => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut gzip, tar).unwrap();
                self.blob(&format!("{LAYER}+gzip"), &gzip.finish().unwrap())
            }
            "+zstd" => self.blob(&format!("{LAYER}+zstd"), &zstd::encode_all(tar.as_slice(), 1).unwrap()),
            other => self.blob(&format!("{LAYER}{other}"), tar),
        });
        self.manifest(blobs.collect(), &diff_ids)
    }

    fn manifest(&self, layers: Vec<Value>, diff_ids: &[String]) -> Value {
        let config = self.document(
            CONFIG,
            &json!({
                "architecture": architecture(), "os": "linux",
                "config": {"Cmd": ["sh"], "Env": ["A=b"], "WorkingDir": "/srv", "User": "1000"},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        );
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.document(MANIFEST, &manifest)
    }

    fn index(&self, manifests: Value) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        fs::write(self.0.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    fn make(&self, tag: Option<&str>) -> Result<(Built, BTreeMap<String, Found>), ImageError> {
        make(self.0.path(), tag).map(|(built, image)| (built, read(&image)))
    }

    fn of_layers(layers: &[(&str, Vec<u8>)]) -> Self {
        let layout = Self::new();
        let image = layout.image(layers);
        layout.index(json!([image]));
        layout
    }
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

#[test]
fn layers_of_every_packing_are_laid_over_each_other() {
    let layout = Layout::of_layers(&[
        (
            "",
            archive(&[
                ("etc/", FOLDER, ""),
                ("etc/a", FILE, "1"),
                ("etc/b", FILE, "1"),
                ("old/x/y", FILE, "1"),
            ]),
        ),
        (
            "+gzip",
            archive(&[
                ("etc/a", FILE, "2"),
                ("etc/.wh.b", FILE, ""),
                ("old/new", FILE, "2"),
                ("old/.wh..wh..opq", FILE, ""),
            ]),
        ),
        ("+zstd", archive(&[("etc/c", FILE, "3"), (".wh.gone", FILE, ""), ("no/.wh.thing", FILE, "")])),
    ]);
    let (built, all) = layout.make(None).unwrap();
    assert_eq!((file(&all, "etc/a"), file(&all, "etc/c")), (b"2".to_vec(), b"3".to_vec()));
    assert!(!all.contains_key("etc/b") && !all.contains_key("old/x"), "{:?}", all.keys());
    assert_eq!(file(&all, "old/new"), b"2", "what the layer itself brings is not hidden by its whiteout");
    assert!(!all.contains_key("no"), "a whiteout makes no folder");
    let config = built.config.unwrap();
    assert_eq!((config.cmd, config.env), (vec!["sh".to_owned()], vec!["A=b".to_owned()]));
    assert_eq!((config.working_dir.as_deref(), config.user.as_deref()), (Some("/srv"), Some("1000")));
}

#[test]
fn a_folder_hidden_and_made_again_in_one_layer_only_loses_what_was_before() {
    let layout = Layout::of_layers(&[
        ("", archive(&[("d/", FOLDER, ""), ("d/old", FILE, ""), ("d/e/old", FILE, "")])),
        ("", archive(&[("d/", FOLDER, ""), ("d/e/new", FILE, ""), (".wh.d", FILE, "")])),
    ]);
    let (_, all) = layout.make(None).unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["", "d", "d/e", "d/e/new"]);
}

#[test]
fn removed_contents_are_not_in_the_image() {
    let secret = "a secret that a later layer takes away".repeat(200);
    let layout =
        Layout::of_layers(&[("", archive(&[("s", FILE, &secret)])), ("", archive(&[(".wh.s", FILE, "")]))]);
    let (_, image) = make(layout.0.path(), None).unwrap();
    assert!(!image.windows(30).any(|window| window == &secret.as_bytes()[..30]));
}

#[test]
fn altered_blobs_are_refused_and_named() {
    let whole = archive(&[("a", FILE, "text")]);
    let mut other = whole.clone();
    // In the contents, so that the archive is as sound as before.
    other[512] = b'T';
    let layout = Layout::of_layers(&[("", whole.clone())]);
    fs::write(layout.path(&digest(&whole)), &other).unwrap();
    let error = layout.make(None).unwrap_err();
    assert!(
        matches!(&error, ImageError::Digest { path, .. } if *path == layout.path(&digest(&whole))),
        "{error}"
    );

    fs::write(layout.path(&digest(&whole)), &other[..600]).unwrap();
    let error = layout.make(None).unwrap_err();
    assert!(error.to_string().contains("is of 600 bytes, not"), "{error}");

    // A manifest that was altered in place.
    let layout = Layout::of_layers(&[("", whole)]);
    let manifest =
        fs::read_dir(layout.0.path().join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let manifest =
        manifest.filter(|path| fs::read(path).unwrap().starts_with(br#"{"config""#)).last().unwrap();
    let text = fs::read_to_string(&manifest).unwrap().replace("\"schemaVersion\":2", "\"schemaVersion\":1");
    fs::write(&manifest, text).unwrap();
    assert!(matches!(layout.make(None), Err(ImageError::Digest { .. })));
}

#[test]
fn a_layer_must_unpack_to_what_the_configuration_says() {
    let layout = Layout::new();
    let tar = archive(&[("a", FILE, "text")]);
    let blob = layout.blob(LAYER, &tar);
    layout.index(json!([layout.manifest(vec![blob.clone()], &[format!("sha256:{}", digest(b"other"))])]));
    assert!(matches!(layout.make(None), Err(ImageError::Digest { .. })));
    layout.index(json!([layout.manifest(vec![blob], &[])]));
    assert!(layout.make(None).unwrap_err().to_string().contains("different numbers of layers"));
}

#[test]
fn an_image_is_chosen_by_its_tag_and_this_machines_architecture() {
    let layout = Layout::new();
    let tagged = |name: &str| {
        let image = layout.image(&[("", archive(&[(name, FILE, "")]))]);
        with(image, "annotations", json!({"org.opencontainers.image.ref.name": name}))
    };
    layout.index(json!([tagged("one"), tagged("two")]));
    assert!(layout.make(Some("two")).unwrap().1.contains_key("two"));
    let error = layout.make(None).unwrap_err();
    assert!(error.to_string().contains("by its tag: one, two"), "{error}");
    let error = layout.make(Some("three")).unwrap_err();
    assert!(error.to_string().contains("no image has the tag three; there are: one, two"), "{error}");

    let platform = |image, architecture: &str| {
        with(image, "platform", json!({"os": "linux", "architecture": architecture}))
    };
    let images = json!({"schemaVersion": 2, "manifests": [platform(tagged("other"), "s390x"), platform(tagged("ours"), architecture())]});
    layout.index(json!([layout.document(INDEX, &images)]));
    assert!(layout.make(None).unwrap().1.contains_key("ours"));
    layout.index(json!([platform(tagged("other"), "s390x")]));
    assert!(layout.make(None).unwrap_err().to_string().contains("it holds no image for"));
}

#[test]
fn hostile_layouts_are_refused() {
    let layout = Layout::new();
    let sha512 = format!("sha512:{}", "0".repeat(128));
    for (digest, why) in [("sha256:../../../../etc/passwd", "invalid"), (&sha512, "is no sha-256")] {
        layout.index(json!([{"mediaType": MANIFEST, "digest": digest, "size": 2}]));
        let error = layout.make(None).unwrap_err();
        assert!(matches!(error, ImageError::Layout { .. }), "{error}");
        assert!(error.to_string().to_lowercase().contains(why), "{error}");
    }
    let layout = Layout::of_layers(&[(".enc", archive(&[]))]);
    assert!(layout.make(None).unwrap_err().to_string().contains("which is not known here"));
    // Layers are held to the same rules as archives.
    let layout = Layout::of_layers(&[("", archive(&[("../x", FILE, "")]))]);
    assert!(matches!(layout.make(None), Err(ImageError::Refused { .. })));
    // A tag makes no sense elsewhere.
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(make(folder.path(), Some("tag")), Err(ImageError::Layout { .. })));
}
