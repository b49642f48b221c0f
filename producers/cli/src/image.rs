//! The options of `image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct ImageCommand {
    #[command(subcommand)]
    pub(crate) action: ImageAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageAction {
    /// Make a root filesystem image; the same source gives the same bytes
    #[command(after_help = "\
The image is an EROFS, which a guest mounts read-only. Archives and OCI images keep their owners and times; of a folder only
names, modes and contents are taken, and all of it belongs to root. Neither root nor mkfs is needed.

Exit codes: 0 the image is there, 125 it could not be made and nothing was left

Examples:
  glasshouse image build --from ./rootfs -o app.img
  debootstrap --variant=minbase bookworm root && glasshouse image build --from root -o debian.img
  skopeo copy docker://busybox:1.36 oci:busybox:1.36 && glasshouse image build --from busybox --tag 1.36 -o busybox.img")]
    Build(BuildImageArgs),
    /// Say what an image is
    #[command(after_help = "Exit codes: 0 it is an image, 125 it is none\n\n\
        Example:\n  glasshouse image inspect app.img --json")]
    Inspect(InspectImageArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BuildImageArgs {
    /// A folder, a tar archive (plain, gzip, xz or zstd), or a folder with an OCI image layout
    #[arg(long, value_name = "DIR|TAR|OCI-LAYOUT")]
    pub(crate) from: PathBuf,
    /// Which image of an OCI layout; needed where it holds several
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// The image to write; one that is there is replaced once the new one is whole, unless it has the same bytes
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The most that the source may unpack to, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=8192))]
    pub(crate) max_gib: u64,
    /// Print what was made as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectImageArgs {
    /// The image
    pub(crate) image: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
