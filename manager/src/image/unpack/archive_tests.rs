use std::io::Cursor;

use super::super::tests::Layer;
use super::*;

fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut archive = Archive::new(Cursor::new(bytes));
    let mut all = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        all.push(entry);
    }
    Ok(all)
}

#[test]
fn reads_entries_and_skips_their_data() {
    let bytes = Layer::new().file("a", &[1; 700]).directory("d/").file("b", b"").end();
    let all = entries(&bytes).unwrap();
    let names: Vec<String> = all.iter().map(Entry::display_name).collect();
    assert_eq!(names, ["a", "d/", "b"]);
    assert_eq!((all[0].size, all[0].kind, all[1].kind), (700, EntryKind::File, EntryKind::Directory));
}

#[test]
fn old_headers_mark_directories_by_a_slash() {
    let bytes = Layer::new().file("d/", b"").end();
    assert_eq!(entries(&bytes).unwrap()[0].kind, EntryKind::Directory);
}

#[test]
fn links_have_no_data_whatever_their_size_says() {
    let bytes = Layer::new()
        .add(EntryType::Link, "l", b"", |header| {
            header.set_link_name_literal("t").unwrap();
            header.set_size(4096);
        })
        .file("after", b"")
        .end();
    assert_eq!(entries(&bytes).unwrap().len(), 2);
}

#[test]
fn global_headers_name_no_file() {
    let bytes =
        Layer::new().add(EntryType::XGlobalHeader, "g", b"17 comment=abcde\n", |_| {}).file("f", b"").end();
    assert_eq!(entries(&bytes).unwrap().len(), 1);
}

#[test]
fn one_block_of_zeros_may_end_a_stream_but_not_divide_it() {
    let one = Layer::new().file("a", b"").end();
    assert_eq!(entries(&one[..one.len() - 512]).unwrap().len(), 1);
    let mut divided = one[..1024].to_vec();
    divided.extend_from_slice(&one[..512]);
    assert!(entries(&divided).is_err());
}

#[test]
fn the_last_padding_may_be_missing_but_no_data() {
    let whole = Layer::new().file("a", b"x").file("b", &[1; 700]).end();
    let data = 512 + 512 + 512 + 700;
    for length in data..=whole.len() - 1024 {
        assert_eq!(entries(&whole[..length]).unwrap().len(), 2, "{length}");
    }
    assert!(entries(&whole[..data - 1]).is_err());
    // Within the first entry's padding too, but not what an extended header is about.
    assert_eq!(entries(&whole[..600]).unwrap().len(), 1);
    let extended = Layer::new().pax(&[("path", b"long")]).file("a", b"x").end();
    assert!(entries(&extended[..600]).is_err());
}
