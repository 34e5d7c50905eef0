//! What a guest can get wrong. The name says the bug.

use clap::ValueEnum;

/// One bug of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum GuestBug {
    // Discovery.
    SignatureNotCompared,
    OnlyTheFirstBasesTried,
    UnknownFeaturesRejected,
    NegotiateLeftOut,
    // Requests.
    MagicForgotten,
    SentinelNotPreset,
    ReservedFieldNotZero,
    WrongVersion,
    WrongFunction,
    BufferBeyondTheLimit,
    // Answers.
    UnknownStatusTakenAsSuccess,
    BusyRepeatedForEver,
    BusyStartedAnew,
    BusyRepeatedWithAnotherCount,
    HintFollowedHoweverLong,
    NotReleasedAfterGarbage,
    ShortGrantIgnored,
    PendingDropped,
    PendingDeliveredTwice,
    PendingDeliveredWhileMasked,
    NoFallback,
    NotWithoutTheService,
    // Table and configuration space.
    EnableAfterConfigure,
    FunctionMaskLeftSet,
    GuestMessageInADirectTable,
    VectorControlBitsCleared,
    MaskForgotten,
    RepeatedMessageNotCalled,
    // Resets.
    NothingAfterAReset,
    MasksNotWrittenAfterAReset,
    OldTableMessagesWrittenBack,
}
