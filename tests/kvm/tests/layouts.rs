//! Small BARs in KVM's memory slots: a page of their own, or none.

use std::sync::Arc;

use kvm_ioctls::Kvm;
use pvmsi_hypervisor::{
    Bar, BarIndex, BarMapping, KvmWindow, Layout, MemorySlots, View, Window, host_page_size,
};
use pvmsi_protocol::TableMode;
use vm_memory::{GuestAddress, MmapRegion};

/// 65 vectors in a BAR of half a page, pending bits in a BAR of 256 bytes.
fn layout() -> Layout {
    let page = host_page_size();
    let mut bars = [None; BarIndex::COUNT];
    bars[0] = Some(Bar { size: page / 2, is_64bit: false, prefetchable: false });
    bars[4] = Some(Bar { size: 256, is_64bit: false, prefetchable: false });
    Layout::new(bars, 65, (BarIndex(0), 0x80), (BarIndex(4), 0), page).unwrap()
}

fn mapping(bar: u8) -> BarMapping {
    let memory = Arc::new(MmapRegion::new(host_page_size().try_into().unwrap()).unwrap());
    BarMapping { bar: BarIndex(bar), offset: 0, memory }
}

fn view(table: TableMode) -> View {
    let mut bars = [None; BarIndex::COUNT];
    bars[0] = Some(GuestAddress(0xc000_0000));
    bars[4] = Some(GuestAddress(0xc100_0000));
    View { bars, table }
}

/// A window of a VM of its own with so many slots; the VM.
fn window(
    layout: &Layout,
    mappings: Vec<BarMapping>,
    slots: u32,
) -> (KvmWindow, Arc<kvm_ioctls::VmFd>) {
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    let slots = Arc::new(MemorySlots::new(vm.clone(), 1..1 + slots));
    (KvmWindow::new(slots, layout, mappings), vm)
}

/// Whether something is shown at a guest physical address: KVM lets nothing else be there.
fn is_shown(vm: &Arc<kvm_ioctls::VmFd>, address: u64) -> bool {
    let probe = MemorySlots::new(vm.clone(), 20..21);
    let BarMapping { memory, .. } = mapping(0);
    match probe.map(GuestAddress(address), &memory, 0, host_page_size()) {
        Ok(slot) => {
            probe.unmap(slot).unwrap();
            false
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
            true
        }
    }
}

#[test]
fn small_bars_with_pages_of_their_own_are_shown() {
    let grown = layout().with_own_pages(|_| true);
    let (mut window, vm) = window(&grown, vec![mapping(0), mapping(4)], 2);
    assert!(window.table_can_be_direct());
    let shown = || [0xc000_0000, 0xc100_0000].map(|address| is_shown(&vm, address));
    window.show(&view(TableMode::Direct)).unwrap();
    assert_eq!(shown(), [true, true]);
    window.show(&view(TableMode::Trapped)).unwrap();
    assert_eq!(shown(), [false, false]);
}

#[test]
fn pending_bits_without_a_page_do_not_keep_the_table() {
    let table_alone = layout().with_own_pages(|bar| bar == BarIndex(0));
    let shared = layout().with_own_pages(|_| true);
    // Their BAR shares its page; or the VM has no slot for it.
    for (layout, mappings, slots) in
        [(table_alone, vec![mapping(0)], 2), (shared, vec![mapping(0), mapping(4)], 1)]
    {
        let (mut window, vm) = window(&layout, mappings, slots);
        assert!(window.table_can_be_direct());
        window.show(&view(TableMode::Direct)).unwrap();
        assert!(is_shown(&vm, 0xc000_0000) && !is_shown(&vm, 0xc100_0000));
    }
}

#[test]
fn a_table_without_a_page_is_never_shown() {
    let (mut window, vm) = window(&layout(), vec![mapping(0), mapping(4)], 2);
    assert!(!window.table_can_be_direct());
    window.show(&view(TableMode::Direct)).unwrap();
    assert!(!is_shown(&vm, 0xc000_0000) && !is_shown(&vm, 0xc100_0000));
}
