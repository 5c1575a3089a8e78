//! What UEFI firmware starts: a disk with one small program, which nobody has signed.

use std::io::{self, Cursor, Write as _};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// What the program says on the console, and no more.
pub const SAID: &str = "unsigned code runs";

/// Where its code is in memory, and what a section is aligned to there.
const PAGE: u32 = 0x1000;
/// The length of its headers, and of its one section behind them.
const PART: u32 = 0x200;
/// Prints the text behind it, with the firmware's system table in rdx, and stays where it is.
const CODE: [&[u8]; 6] = [
    &[0x48, 0x83, 0xec, 0x28], // sub rsp, 0x28: room for what is called, as its convention wants it
    &[0x48, 0x8b, 0x4a, 0x40], // mov rcx, [rdx+0x40]: ConOut
    &[0x48, 0x8d, 0x15, 0x06, 0, 0, 0], // lea rdx, [rip+6]: the text
    &[0xff, 0x51, 0x08],       // call [rcx+8]: OutputString
    &[0xf4],                   // hlt
    &[0xeb, 0xfd],             // jmp to the hlt
];

/// The content of a disk of that many bytes: a FAT with the program where firmware looks that knows of no boot entry.
///
/// # Errors
/// The disk is too small.
pub fn disk(bytes: usize) -> io::Result<Vec<u8>> {
    let mut disk = vec![0; bytes];
    fatfs::format_volume(Cursor::new(&mut disk[..]), FormatVolumeOptions::new())?;
    let volume = FileSystem::new(Cursor::new(&mut disk[..]), FsOptions::new())?;
    {
        let folder = volume.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
        let mut file = folder.create_file("BOOTX64.EFI")?;
        file.write_all(&program())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(disk)
}

/// The program, as PE32+ has it: headers, of which all is zero that firmware does not ask for, and one section.
fn program() -> Vec<u8> {
    let text: Vec<u8> = SAID.encode_utf16().chain([0x0d, 0x0a, 0]).flat_map(u16::to_le_bytes).collect();
    let code = [CODE.concat(), text].concat();
    let [page, part, image] = [PAGE, PART, 2 * PAGE].map(u32::to_le_bytes);
    let parts: [(usize, &[u8]); 22] = [
        (0x00, b"MZ"),
        (0x3c, &[0x40]), // where the next header begins
        (0x40, b"PE"),
        (0x44, &[0x64, 0x86]),        // for x86-64
        (0x46, &[1]),                 // sections
        (0x54, &[0xf0]),              // the length of the next header
        (0x56, &[0x22]),              // it can be executed, anywhere
        (0x58, &[0x0b, 0x02]),        // PE32+
        (0x68, &page),                // where it begins
        (0x78, &page),                // alignment in memory
        (0x7c, &part),                // and in the file
        (0x90, &image),               // its length in memory
        (0x94, &part),                // of which headers
        (0x9c, &[10]),                // an application for UEFI
        (0xc4, &[16]),                // directories, all empty
        (0x148, b".text"),            // the section
        (0x150, &part),               // its length in memory
        (0x154, &page),               // and place
        (0x158, &part),               // its length in the file
        (0x15c, &part),               // and place
        (0x16c, &[0x20, 0, 0, 0x60]), // code, which is executed and read
        (PART as usize, &code),
    ];
    let mut program = vec![0; 2 * PART as usize];
    for (at, bytes) in parts {
        program[at..at + bytes.len()].copy_from_slice(bytes);
    }
    program
}
