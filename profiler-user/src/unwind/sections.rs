//! An image to the sections that unwinding reads, once they are known to be harmless.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use framehop::ExplicitModuleSectionInfo;
use gimli::BaseAddresses;

use crate::process::image::Image;
use crate::unwind::tables;

/// Copies of them.
pub fn sections(image: &Image) -> Result<ExplicitModuleSectionInfo<Arc<[u8]>>, String> {
    let eh_frame = image.eh_frame().ok_or("no .eh_frame")?;
    let eh_frame_hdr = image.eh_frame_hdr();
    Ok(ExplicitModuleSectionInfo {
        base_svma: image.lowest_address(),
        text_svma: image.text().map(|section| section.address.clone()),
        got_svma: image.got().map(|section| section.address.clone()),
        eh_frame_svma: Some(eh_frame.address.clone()),
        eh_frame: Some(image.read(eh_frame)?.into()),
        eh_frame_hdr_svma: eh_frame_hdr.map(|section| section.address.clone()),
        eh_frame_hdr: eh_frame_hdr.map(|section| image.read(section).map(Arc::from)).transpose()?,
        ..ExplicitModuleSectionInfo::default()
    })
}

/// Where the image states its sections to lie.
pub fn bases(sections: &ExplicitModuleSectionInfo<Arc<[u8]>>) -> BaseAddresses {
    let start = |range: &Option<Range<u64>>| range.as_ref().map_or(0, |range| range.start);
    BaseAddresses::default()
        .set_eh_frame(start(&sections.eh_frame_svma))
        .set_eh_frame_hdr(start(&sections.eh_frame_hdr_svma))
        .set_text(start(&sections.text_svma))
        .set_got(start(&sections.got_svma))
}

/// Tables are the target's, and a walk by forged ones might not end.
pub fn check(sections: &ExplicitModuleSectionInfo<Arc<[u8]>>) -> Result<(), String> {
    let bases = bases(sections);
    let eh_frame = sections.eh_frame.as_deref().unwrap_or_default();
    // Slips in arithmetic over forged numbers stop a program that was built to look for them.
    let found = || tables::check(eh_frame, sections.eh_frame_hdr.as_deref(), &bases);
    catch_unwind(AssertUnwindSafe(found))
        .unwrap_or_else(|_| Err("its unwind tables make no sense".to_owned()))
}
