//! What a guest does with its one function: configuration space and calls, on the service itself.

use anyhow::{Context, Result, ensure};
use pvmsi_hypervisor::{FunctionHandle, FunctionPolicy, PciFunction, Platform, Service, Window};
use pvmsi_protocol::{
    BUFFER_MAX, CallError, CallId, ConfigureAnswer, ConfigureRequest, FunctionId, GuestMessage,
    Header, Kind, Sequence, UpdateRequest, VectorSetup, VectorUpdate,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the guest has the function.
const FUNCTION: FunctionId = FunctionId(8);
/// Where its first BAR is, aligned for pages of any size.
const BAR: u32 = 0xc000_0000;
const COMMAND: u64 = 0x04;
/// Memory decoding, and DMA.
const DECODING_AND_DMA: u8 = 6;
const BARS: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;
const MSIX: u8 = 0x11;
const ENABLE: u8 = 0x80;
const RAM_BYTES: usize = 0x10_0000;
/// The page of the call buffer, which is followed by its others.
const PAGE: u32 = 0x10;
const BUFFER: u64 = 0x1_0000;
/// RAM that no call uses starts here.
pub(crate) const FREE_RAM: u64 = 0x4_0000;

/// Where the guest of an arm64 host has the doorbell of its ITS.
#[cfg(target_arch = "aarch64")]
const ITS: u64 = 0x0809_0040;

/// The platform whose messages this host's service takes. No processor of a guest gets them.
#[cfg(target_arch = "x86_64")]
pub(crate) const PLATFORM: Platform = Platform::X86_64 { extended_destination_ids: false };
/// The platform whose messages this host's service takes.
#[cfg(target_arch = "aarch64")]
pub(crate) const PLATFORM: Platform = Platform::Aarch64 { its_doorbell: ITS };

/// What a `configure` has answered.
pub(crate) enum Answer {
    /// To be repeated with this sequence.
    Busy(Sequence),
    /// So many vectors.
    Granted(u16),
}

/// The guest.
pub(crate) struct Guest {
    service: Service,
    /// None while it is unplugged.
    function: Option<FunctionHandle>,
    memory: GuestMemoryMmap,
}

impl Guest {
    /// Of a service, without a function yet.
    ///
    /// # Errors
    /// Where there is no memory.
    pub(crate) fn new(service: Service) -> Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?;
        Ok(Self { service, function: None, memory })
    }

    /// Its RAM.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Gets the function.
    ///
    /// # Errors
    /// Where the service refuses.
    pub(crate) fn plug(
        &mut self,
        function: impl PciFunction + 'static,
        window: impl Window + 'static,
    ) -> Result<()> {
        let policy = FunctionPolicy::default();
        let added =
            self.service.add_function(FUNCTION, Box::new(function), Box::new(window), policy);
        self.function = Some(added.map_err(|refused| refused.error)?);
        Ok(())
    }

    /// Whether it has the function.
    pub(crate) fn has_function(&self) -> bool {
        self.function.is_some()
    }

    /// Gives the function a place, and enables its MSI-X.
    ///
    /// # Errors
    /// Where it has none, or is gone.
    pub(crate) fn start(&self) -> Result<()> {
        self.write(BARS, &BAR.to_le_bytes())?;
        self.write(BARS.saturating_add(4), &[0; 4])?;
        self.write(COMMAND, &[DECODING_AND_DMA, 0])?;
        let capability = self.msix()?;
        self.write(capability.saturating_add(3), &[ENABLE])
    }

    /// A call for the first vectors, each with a message, unmasked.
    ///
    /// # Errors
    /// Any answer but success and *busy*.
    pub(crate) fn configure(&self, vectors: u16, sequence: Sequence) -> Result<Answer> {
        let setups = (0..vectors)
            .map(|vector| VectorSetup { message: Some(message(vector)), masked: false });
        let mut body = vec![0; BUFFER_MAX.saturating_sub(Header::SIZE)];
        let used = ConfigureRequest::encode(Kind::MsiX, vectors, sequence, setups, &mut body)?;
        body.truncate(used);
        match self.call(CallId::Configure, &body)? {
            Ok(answer) => {
                let answer = ConfigureAnswer::decode(&answer);
                let answer = answer.ok().context("the answer cannot be decoded")?;
                Ok(Answer::Granted(answer.granted))
            }
            Err(CallError::Busy(busy)) => Ok(Answer::Busy(busy.sequence)),
            Err(error) => Err(error.into()),
        }
    }

    /// Names the messages of vectors anew.
    ///
    /// # Errors
    /// Where the call fails.
    pub(crate) fn update(&self, updates: &[VectorUpdate]) -> Result<()> {
        let mut body = vec![0; BUFFER_MAX.saturating_sub(Header::SIZE)];
        let used = UpdateRequest::encode(updates.iter().copied(), &mut body)?;
        body.truncate(used);
        self.call(CallId::Update, &body)??;
        Ok(())
    }

    /// Gives the vectors up.
    ///
    /// # Errors
    /// Where the call fails.
    pub(crate) fn release(&self) -> Result<()> {
        self.call(CallId::Release, &[])??;
        Ok(())
    }

    /// The host resets the machine.
    ///
    /// # Errors
    /// None.
    pub(crate) fn reset_machine(&self) -> Result<()> {
        Ok(self.service.reset()?)
    }

    /// The host takes the function out.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn unplug(&mut self) -> Result<()> {
        let function = self.function.take().context("the function is gone")?;
        Ok(function.remove()?)
    }

    /// The host's side of the function.
    ///
    /// # Errors
    /// Where it is gone.
    pub(crate) fn function(&self) -> Result<&FunctionHandle> {
        self.function.as_ref().context("the function is gone")
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.function()?.config_write(offset, data)?)
    }

    fn byte(&self, offset: u64) -> Result<u8> {
        let mut byte = [0];
        self.function()?.config_read(offset, &mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    /// Where the MSI-X capability is.
    fn msix(&self) -> Result<u64> {
        let mut at = u64::from(self.byte(CAPABILITIES)?);
        // No more than there can be.
        for _ in 0..64 {
            if at == 0 || self.byte(at)? == MSIX {
                break;
            }
            at = u64::from(self.byte(at.saturating_add(1))?);
        }
        ensure!(at != 0, "the function has no MSI-X");
        Ok(at)
    }

    fn call(&self, call: CallId, body: &[u8]) -> Result<Result<Vec<u8>, CallError>> {
        let header = Header::request(call, FUNCTION, BUFFER_MAX, body.len());
        let header = header.context("the body is too long")?;
        let start = GuestAddress(BUFFER.saturating_add(u64::try_from(Header::SIZE)?));
        self.memory.write_slice(&header.to_bytes(), GuestAddress(BUFFER))?;
        self.memory.write_slice(body, start)?;
        self.service.doorbell(&self.memory, PAGE)?;
        let mut bytes = [0; Header::SIZE];
        self.memory.read_slice(&mut bytes, GuestAddress(BUFFER))?;
        let header = Header::from_bytes(&bytes);
        let mut answer = vec![0; usize::try_from(header.body_length)?];
        self.memory.read_slice(&mut answer, start)?;
        Ok(match CallError::decode(header.status, &answer) {
            None => Ok(answer),
            Some(error) => Err(error),
        })
    }
}

/// The message of a vector, another one for each.
#[cfg(target_arch = "x86_64")]
pub(crate) fn message(vector: u16) -> GuestMessage {
    let (processor, interrupt) = (vector >> 7, vector & 0x7f);
    let address = 0xfee0_0000 | u64::from(processor) << 12;
    GuestMessage { address, data: 0x80 | u32::from(interrupt) }
}

/// The message of a vector, another one for each.
#[cfg(target_arch = "aarch64")]
pub(crate) fn message(vector: u16) -> GuestMessage {
    GuestMessage { address: ITS, data: u32::from(vector) }
}
