//! Pointers that come from C: null and misaligned ones are found here, before anything is done.

use core::mem::MaybeUninit;

use crate::status::pvmsi_status;

/// A value that C lends for the time of a call.
///
/// # Safety
/// Conditions 1 and 2 of the crate.
pub(crate) unsafe fn shared<'a, T>(pointer: *const T) -> Result<&'a T, pvmsi_status> {
    check(pointer)?;
    // SAFETY: the caller's conditions; not null, aligned.
    Ok(unsafe { &*pointer })
}

/// Where C wants a result. Nothing is read from there.
///
/// # Safety
/// Condition 1 of the crate.
pub(crate) unsafe fn output<'a, T>(
    pointer: *mut T,
) -> Result<&'a mut MaybeUninit<T>, pvmsi_status> {
    check(pointer)?;
    // SAFETY: the caller's condition; not null, aligned, and any content will do.
    Ok(unsafe { &mut *pointer.cast() })
}

/// As [`output`], where C may not want the result: null.
///
/// # Safety
/// As [`output`].
pub(crate) unsafe fn optional_output<'a, T>(
    pointer: *mut T,
) -> Result<Option<&'a mut MaybeUninit<T>>, pvmsi_status> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's condition.
    unsafe { output(pointer) }.map(Some)
}

/// An array that C lends for the time of a call; null is one of length 0.
///
/// # Safety
/// Condition 1 of the crate, for `count` elements.
pub(crate) unsafe fn array<'a, T>(pointer: *const T, count: u16) -> Result<&'a [T], pvmsi_status> {
    if count == 0 {
        return Ok(&[]);
    }
    check(pointer)?;
    // SAFETY: the caller's condition; not null, aligned, and at most 65,535 small elements.
    Ok(unsafe { core::slice::from_raw_parts(pointer, usize::from(count)) })
}

/// As [`array`], for results.
///
/// # Safety
/// As [`array`].
pub(crate) unsafe fn output_array<'a, T>(
    pointer: *mut T,
    count: u16,
) -> Result<&'a mut [MaybeUninit<T>], pvmsi_status> {
    if count == 0 {
        return Ok(&mut []);
    }
    check(pointer)?;
    // SAFETY: as in `array`, and any content will do.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer.cast(), usize::from(count)) })
}

fn check<T>(pointer: *const T) -> Result<(), pvmsi_status> {
    if pointer.is_null() || !pointer.is_aligned() { Err(pvmsi_status::Pointer) } else { Ok(()) }
}
