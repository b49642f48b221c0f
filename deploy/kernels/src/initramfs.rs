//! The root file system of the test machine: a cpio archive in the "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Made by hand, so that device nodes need no root.

use std::io::Write;

use anyhow::Result;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes an archive with `/dev/console` and these programs at the root.
pub(crate) fn write(out: &mut impl Write, programs: &[(&str, &[u8])]) -> Result<()> {
    let mut inode = 0;
    let mut entry = |name: &str, mode: u32, device: (u32, u32), bytes: &[u8]| -> Result<()> {
        inode += 1;
        let length = u32::try_from(bytes.len())?;
        let fields = [
            inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            length,
            0, // device the archive was on
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1)?,
            0, // checksum
        ];
        let mut head = b"070701".to_vec();
        for field in fields {
            write!(head, "{field:08X}")?;
        }
        head.extend(name.bytes());
        head.push(0);
        for part in [&head, bytes] {
            out.write_all(part)?;
            let padding = part.len().next_multiple_of(4) - part.len();
            out.write_all(&[0; 3][..padding])?;
        }
        Ok(())
    };
    entry("dev", DIRECTORY, (0, 0), &[])?;
    entry("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
    for (name, bytes) in programs {
        entry(name, PROGRAM, (0, 0), bytes)?;
    }
    entry("TRAILER!!!", 0, (0, 0), &[])
}
