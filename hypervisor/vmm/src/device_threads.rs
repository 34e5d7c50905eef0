//! Threads that run the software functions: what the electronics do in a real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pvmsi_software::SoftwareDevice;

/// The shortest and the longest sleep of a function that has nothing to do.
const NAP: Duration = Duration::from_micros(50);
const NAP_MAX: Duration = Duration::from_millis(1);

/// One thread for each software function; they end when this is dropped.
pub(crate) struct DeviceThreads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl DeviceThreads {
    /// Starts them.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub(crate) fn start(
        devices: impl IntoIterator<Item = Arc<SoftwareDevice>>,
    ) -> std::io::Result<Self> {
        let mut started = Self { stop: Arc::default(), threads: Vec::new() };
        for device in devices {
            let stop = Arc::clone(&started.stop);
            let thread = thread::Builder::new()
                .name("pvmsi-device".into())
                .spawn(move || run(&device, &stop))?;
            started.threads.push(thread);
        }
        Ok(started)
    }
}

impl Drop for DeviceThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A device that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn run(device: &SoftwareDevice, stop: &AtomicBool) {
    let mut nap = NAP;
    while !stop.load(Ordering::Relaxed) {
        if device.run() {
            nap = NAP;
            // On a small host a vCPU may wait for this processor.
            thread::yield_now();
        } else {
            thread::sleep(nap);
            nap = nap.saturating_mul(2).min(NAP_MAX);
        }
    }
}
