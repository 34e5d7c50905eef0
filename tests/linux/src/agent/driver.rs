//! Drivers of the guest: loaded, bound, let go, and brought to reset their function.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use serde_json::json;

use super::device::Device;
use super::disk::Disk;
use super::{Answer, network, object, system};

/// The guest's modules, and for each driver a list of those that it needs, itself last.
const MODULES: &str = "/modules";

/// A driver that works in the background has come to rest after this time.
const REST: Duration = Duration::from_millis(300);

/// Hot-plug of PCI Express gives people five seconds to think again.
const UNPLUGGED: Duration = Duration::from_secs(60);

/// Loads what a driver needs.
pub(super) fn prepare(driver: &str) -> Result<Answer> {
    let list = order(driver)?;
    let needed = list.len().saturating_sub(1);
    for module in list.iter().take(needed) {
        insert(module, "")?;
    }
    object(json!({}))
}

/// Loads a driver and waits until its function works.
pub(super) fn load(driver: &str) -> Result<Answer> {
    let begin = Instant::now();
    insert(driver, "")?;
    finish(driver, begin)
}

/// Unloads a driver.
pub(super) fn unload(driver: &str) -> Result<Answer> {
    let begin = Instant::now();
    remove(driver)?;
    seconds(begin)
}

/// Gives a driver its function.
pub(super) fn bind(driver: &str) -> Result<Answer> {
    let address = Device::of(driver)?.address;
    let begin = Instant::now();
    write(&format!("/sys/bus/pci/drivers/{driver}/bind"), &address)?;
    finish(driver, begin)
}

/// Gives a driver its function and has it take its interrupts, without waiting for a link.
pub(super) fn occupy(driver: &str) -> Result<()> {
    let device = Device::of(driver)?;
    write(&format!("/sys/bus/pci/drivers/{driver}/bind"), &device.address)?;
    if driver == "nvme" { works(driver) } else { network::switch(&device, true) }
}

/// Takes its function from a driver.
pub(super) fn unbind(driver: &str) -> Result<Answer> {
    let address = Device::of(driver)?.address;
    let begin = Instant::now();
    write(&format!("/sys/bus/pci/drivers/{driver}/unbind"), &address)?;
    seconds(begin)
}

/// Whether a function works.
pub(super) fn check(driver: &str) -> Result<Answer> {
    let begin = Instant::now();
    works(driver)?;
    seconds(begin)
}

/// Removes a function that the host takes back. Nobody tells a guest of a machine without hot-plug.
pub(super) fn gone(driver: &str) -> Result<Answer> {
    let begin = Instant::now();
    let address = in_use(driver)?.with_context(|| format!("{driver} has no function"))?;
    write(&format!("/sys/bus/pci/devices/{address}/remove"), "1")?;
    seconds(begin)
}

/// Waits until the machine's hot-plug has taken a driver's function away.
pub(super) fn vanishes(driver: &str) -> Result<Answer> {
    let begin = Instant::now();
    while let Some(address) = in_use(driver)? {
        if begin.elapsed() >= UNPLUGGED {
            bail!("{driver} still has {address}");
        }
        sleep(Duration::from_millis(10));
    }
    seconds(begin)
}

/// The address of a driver's function, whose configuration space may read as ones already.
fn in_use(driver: &str) -> Result<Option<String>> {
    let folder = format!("/sys/bus/pci/drivers/{driver}");
    let entries = fs::read_dir(&folder).with_context(|| format!("no driver {folder}"))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("0000:")))
}

/// Brings the driver to disable its function and to enable it again.
pub(super) fn disable_enable(driver: &str) -> Result<Answer> {
    let device = Device::of(driver)?;
    let begin = Instant::now();
    match driver {
        "nvme" => {
            let controller = device.entry("nvme", "nvme").context("no controller")?;
            let file = device.path(&format!("nvme/{controller}/reset_controller"));
            write(&file.to_string_lossy(), "1")?;
        }
        _ => {
            network::switch(&device, false)?;
            network::switch(&device, true)?;
        }
    }
    finish(driver, begin)
}

/// Resets a function through sysfs. nvme is told before and afterwards. igb is not, and warns when its
/// watchdog reads a function that is just being reset: the interface is down meanwhile.
pub(super) fn reset(driver: &str) -> Result<Answer> {
    let device = Device::of(driver)?;
    let begin = Instant::now();
    if driver != "nvme" {
        network::switch(&device, false)?;
    }
    write(&device.path("reset").to_string_lossy(), "1")?;
    finish(driver, begin)
}

/// Waits until a function works, and takes the time; then until its driver has come to rest.
fn finish(driver: &str, begin: Instant) -> Result<Answer> {
    works(driver)?;
    let answer = seconds(begin)?;
    sleep(REST);
    Ok(answer)
}

/// A block can be read through each processor's queue, or the link is up.
pub(super) fn works(driver: &str) -> Result<()> {
    match driver {
        "nvme" => Disk::wait()?.verify(0, 4096),
        _ => network::wait(&Device::of(driver)?),
    }
}

/// A block is read through the queue of each processor.
pub(super) fn works_on_all(driver: &str) -> Result<()> {
    if driver != "nvme" {
        return works(driver);
    }
    let mut disk = Disk::wait()?;
    for processor in system::processors()? {
        system::stay_on(processor)?;
        disk.verify(u64::from(processor), 4096)?;
    }
    system::stay_anywhere()
}

pub(super) fn seconds(begin: Instant) -> Result<Answer> {
    object(json!({ "seconds": begin.elapsed().as_secs_f64() }))
}

/// Loads a module of the guest; one that is there already is no error.
pub(super) fn insert(module: &str, parameters: &str) -> Result<()> {
    let path = Path::new(MODULES).join(format!("{module}.ko"));
    let file = fs::File::open(&path).with_context(|| format!("no module {}", path.display()))?;
    match rustix::system::finit_module(&file, &CString::new(parameters)?, 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => bail!("the kernel does not take the module {module}: {error}"),
    }
}

/// Unloads a module.
pub(super) fn remove(module: &str) -> Result<()> {
    let name = CString::new(module.replace('-', "_"))?;
    rustix::system::delete_module(&name, libc::O_NONBLOCK)
        .with_context(|| format!("the kernel keeps the module {module}"))
}

fn order(driver: &str) -> Result<Vec<String>> {
    let path = Path::new(MODULES).join(format!("{driver}.order"));
    let text = fs::read_to_string(&path).with_context(|| format!("no list {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Writes a file of sysfs or procfs.
pub(super) fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text} to {path}"))
}
