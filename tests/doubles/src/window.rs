//! A memory map that keeps what it shows.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pvmsi_hypervisor::{View, Window};
use pvmsi_protocol::TableMode;

use crate::step::{Hook, Step, never};
use crate::sync::Mutex;

/// What a guest sees of a function, for the test; the service has a [`SharedWindow`] of it.
pub struct RecordedWindow {
    now: Mutex<View>,
    /// All views that were shown, the last one last.
    shown: Mutex<Vec<View>>,
    hook: Box<Hook>,
    table_can_be_direct: bool,
    /// Whether pages of the table cannot be shown.
    pub fails: AtomicBool,
}

/// The window that a service gets.
#[derive(Debug)]
pub struct SharedWindow(pub Arc<RecordedWindow>);

impl RecordedWindow {
    /// A window that shows nothing yet, and can show the table. No step is refused.
    pub fn new() -> Arc<Self> {
        Self::with_hook(true, never)
    }

    /// The same; `hook` is asked before each step.
    pub fn with_hook(
        table_can_be_direct: bool,
        hook: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::new(View::NOTHING),
            shown: Mutex::default(),
            hook: Box::new(hook),
            table_can_be_direct,
            fails: AtomicBool::new(false),
        })
    }

    /// The service's end.
    pub fn share(self: &Arc<Self>) -> Box<SharedWindow> {
        Box::new(SharedWindow(Arc::clone(self)))
    }

    /// What the guest has.
    pub fn now(&self) -> View {
        *self.now.lock().unwrap()
    }

    /// Acts on what the guest has, which does not change meanwhile.
    pub fn while_shown<T>(&self, act: impl FnOnce(&View) -> T) -> T {
        act(&self.now.lock().unwrap())
    }

    /// The views that were shown since the last look.
    pub fn shown(&self) -> Vec<View> {
        std::mem::take(&mut self.shown.lock().unwrap())
    }
}

impl Window for SharedWindow {
    fn show(&mut self, view: &View) -> io::Result<()> {
        let Self(window) = self;
        (window.hook)(Step::Show)?;
        if view.table == TableMode::Direct && window.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("asked to fail"));
        }
        let before = window.now();
        let mut rest = *view;
        for (rest, before) in rest.bars.iter_mut().zip(before.bars) {
            *rest = rest.filter(|address| before == Some(*address));
        }
        if rest.bars == View::NOTHING.bars || before.table == TableMode::Trapped {
            rest.table = TableMode::Trapped;
        }
        if rest != before {
            (window.hook)(Step::TakeOut)?;
            *window.now.lock().unwrap() = rest;
        }
        if rest != *view {
            (window.hook)(Step::PutIn)?;
            *window.now.lock().unwrap() = *view;
            (window.hook)(Step::PutInLast)?;
        }
        window.shown.lock().unwrap().push(*view);
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        self.0.table_can_be_direct
    }

    fn shows_table(&self) -> bool {
        let now = self.0.now();
        now.table == TableMode::Direct && now.bars != View::NOTHING.bars
    }
}

impl fmt::Debug for RecordedWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedWindow").field("now", &self.now()).finish_non_exhaustive()
    }
}
