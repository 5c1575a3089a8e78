//! What the numbers of an error record mean: whole lists, as in `values`, since a reader may have any other provider's records
//! beside Sterna's.

use serde::{Serialize, Serializer};

use super::values::numbered;

numbered!(
    /// What kind of error it is.
    ErrorType: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// None of these; the property beside it tells.
        Other = 1,
        /// Something did not get from one place to another.
        Communications = 2,
        /// It works, and worse than it should.
        QualityOfService = 3,
        /// A program failed.
        Software = 4,
        /// A device failed.
        Hardware = 5,
        /// The place where the devices stand is at fault.
        Environmental = 6,
        /// Somebody may not, or cannot prove that he may.
        Security = 7,
        /// There is less than is asked for.
        Oversubscription = 8,
        /// Something needed cannot be had.
        UnavailableResource = 9,
        /// What is asked for cannot be done.
        UnsupportedOperation = 10,
    }
);

numbered!(
    /// How bad an error is, as who reports it sees it. There is no 1.
    PerceivedSeverity: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// Nothing is at stake: a wrong value, a thing that cannot be done.
        Low = 2,
        /// Somebody should act, in his own time.
        Medium = 3,
        /// Somebody should act now.
        High = 4,
        /// Data or a service is lost.
        Fatal = 5,
    }
);

numbered!(
    /// How to read where an error comes from.
    ErrorSourceFormat: u16 {
        /// As a text for people.
        Unknown = 0,
        /// As the property beside it tells.
        Other = 1,
        /// As the path of a CIM object.
        CimObjectHandle = 2,
    }
);

numbered!(
    /// How a CIM operation ended. Higher numbers are the DMTF's.
    CimStatusCode: u32 {
        /// Something went wrong, and no other value tells it better.
        Failed = 1,
        /// The client may not.
        AccessDenied = 2,
        /// There is no such namespace.
        InvalidNamespace = 3,
        /// A value given makes no sense there.
        InvalidParameter = 4,
        /// There is no such class.
        InvalidClass = 5,
        /// There is no such thing.
        NotFound = 6,
        /// That cannot be done here.
        NotSupported = 7,
        /// The class has subclasses.
        ClassHasChildren = 8,
        /// The class has instances.
        ClassHasInstances = 9,
        /// There is no such superclass.
        InvalidSuperclass = 10,
        /// There is one already.
        AlreadyExists = 11,
        /// The class has no such property.
        NoSuchProperty = 12,
        /// A value is of another type.
        TypeMismatch = 13,
        /// The query is in a language that is not known here.
        QueryLanguageNotSupported = 14,
        /// The query makes no sense in its language.
        InvalidQuery = 15,
        /// The method cannot be called now.
        MethodNotAvailable = 16,
        /// There is no such method.
        MethodNotFound = 17,
        /// An answer came that was not asked for.
        UnexpectedResponse = 18,
        /// There is nobody where the answer was to go.
        InvalidResponseDestination = 19,
        /// The namespace holds something.
        NamespaceNotEmpty = 20,
    }
);

numbered!(
    /// What probably led to an error. Most of these are about equipment that Sterna has nothing to do with.
    ProbableCause: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// None of these; the description beside it tells.
        Other = 1,
        /// A card is at fault.
        AdapterCardError = 2,
        /// A part of an application failed.
        ApplicationSubsystemFailure = 3,
        /// Less passes than before.
        BandwidthReduced = 4,
        /// A connection could not be made.
        ConnectionEstablishmentError = 5,
        /// The two ends do not keep to one protocol.
        CommunicationsProtocolError = 6,
        /// What carries messages failed.
        CommunicationsSubsystemFailure = 7,
        /// Something is set up wrongly.
        ConfigurationCustomizationError = 8,
        /// More is sent than passes.
        Congestion = 9,
        /// Data is not what it was.
        CorruptData = 10,
        /// A limit of processor time was crossed.
        CpuCyclesLimitExceeded = 11,
        /// A modem is at fault.
        DatasetModemError = 12,
        /// A signal is worse than it should be.
        DegradedSignal = 13,
        /// Terminal and modem do not understand each other.
        DteDceInterfaceError = 14,
        /// A cabinet stands open.
        EnclosureDoorOpen = 15,
        /// A device does not do what it should.
        EquipmentMalfunction = 16,
        /// Something shakes.
        ExcessiveVibration = 17,
        /// A file is not of the form that it should have.
        FileFormatError = 18,
        /// Something burns.
        FireDetected = 19,
        /// There is water.
        FloodDetected = 20,
        /// The beginning of frames is not found.
        FramingError = 21,
        /// Heating or cooling is at fault.
        HvacProblem = 22,
        /// The air is too dry or too wet.
        HumidityUnacceptable = 23,
        /// A device for reading and writing is at fault.
        IoDeviceError = 24,
        /// A device for reading is at fault.
        InputDeviceError = 25,
        /// The local network is at fault.
        LanError = 26,
        /// Something harmless leaks.
        NonToxicLeakDetected = 27,
        /// This end could not send.
        LocalNodeTransmissionError = 28,
        /// Frames are no longer found.
        LossOfFrame = 29,
        /// There is no signal any more.
        LossOfSignal = 30,
        /// A supply is used up.
        MaterialSupplyExhausted = 31,
        /// A multiplexer is at fault.
        MultiplexerProblem = 32,
        /// Memory is used up.
        OutOfMemory = 33,
        /// A device for writing is at fault.
        OutputDeviceError = 34,
        /// It works, and more slowly.
        PerformanceDegraded = 35,
        /// The power supply is at fault.
        PowerProblem = 36,
        /// A pressure is out of its range.
        PressureUnacceptable = 37,
        /// A processor is at fault.
        ProcessorProblem = 38,
        /// A pump failed.
        PumpFailure = 39,
        /// A queue is full.
        QueueSizeExceeded = 40,
        /// Something could not be received.
        ReceiveFailure = 41,
        /// A receiver failed.
        ReceiverFailure = 42,
        /// The other end could not send.
        RemoteNodeTransmissionError = 43,
        /// A resource is used up, or soon will be.
        ResourceAtOrNearingCapacity = 44,
        /// Answers take too long.
        ResponseTimeExcessive = 45,
        /// Too much is sent again.
        RetransmissionRateExcessive = 46,
        /// A program has a fault.
        SoftwareError = 47,
        /// A program ended before its time.
        SoftwareProgramAbnormallyTerminated = 48,
        /// A program gave a wrong result.
        SoftwareProgramError = 49,
        /// There is not enough room.
        StorageCapacityProblem = 50,
        /// It is too hot or too cold.
        TemperatureUnacceptable = 51,
        /// A limit was crossed.
        ThresholdCrossed = 52,
        /// Something came too early or too late.
        TimingProblem = 53,
        /// Something poisonous leaks.
        ToxicLeakDetected = 54,
        /// Something could not be sent.
        TransmitFailure = 55,
        /// A transmitter failed.
        TransmitterFailure = 56,
        /// Something that it stands on cannot be had.
        UnderlyingResourceUnavailable = 57,
        /// Two versions do not fit.
        VersionMismatch = 58,
        /// What was reported before is over.
        PreviousAlertCleared = 59,
        /// Somebody could not log in, several times.
        LoginAttemptsFailed = 60,
        /// A virus was found.
        SoftwareVirusDetected = 61,
        /// Somebody was at the hardware.
        HardwareSecurityBreached = 62,
        /// Somebody sends more than can be answered, on purpose.
        DenialOfServiceDetected = 63,
        /// A proof of identity is not the one expected.
        SecurityCredentialMismatch = 64,
        /// Somebody was where he may not be.
        UnauthorizedAccess = 65,
        /// An alarm came in.
        AlarmReceived = 66,
        /// A pointer into a frame was lost.
        LossOfPointer = 67,
        /// A frame carries something else than agreed.
        PayloadMismatch = 68,
        /// Something was damaged on its way.
        TransmissionError = 69,
        /// Too much is damaged on its way.
        ExcessiveErrorRate = 70,
        /// A path's trace is not the one expected.
        TraceProblem = 71,
        /// A part cannot be used now.
        ElementUnavailable = 72,
        /// A part is not there.
        ElementMissing = 73,
        /// Groups of frames are no longer found.
        LossOfMultiFrame = 74,
        /// A broadcast channel failed.
        BroadcastChannelFailure = 75,
        /// A message that came in makes no sense.
        InvalidMessageReceived = 76,
        /// No way is found.
        RoutingFailure = 77,
        /// A backplane failed.
        BackplaneFailure = 78,
        /// Two things have one name.
        IdentifierDuplication = 79,
        /// The way kept in reserve failed.
        ProtectionPathFailure = 80,
        /// Two sides are no longer at the same point.
        SyncLossOrMismatch = 81,
        /// A terminal is at fault.
        TerminalProblem = 82,
        /// A clock failed.
        RealTimeClockFailure = 83,
        /// An antenna failed.
        AntennaFailure = 84,
        /// A battery is not charged.
        BatteryChargingFailure = 85,
        /// A disk failed.
        DiskFailure = 86,
        /// A change of frequency failed.
        FrequencyHoppingFailure = 87,
        /// There is no reserve any more.
        LossOfRedundancy = 88,
        /// A power supply failed.
        PowerSupplyFailure = 89,
        /// A signal is not good enough.
        SignalQualityProblem = 90,
        /// A battery runs down.
        BatteryDischarging = 91,
        /// A battery failed.
        BatteryFailure = 92,
        /// The mains are at fault.
        CommercialPowerProblem = 93,
        /// A fan failed.
        FanFailure = 94,
        /// An engine failed.
        EngineFailure = 95,
        /// A sensor failed.
        SensorFailure = 96,
        /// A fuse blew.
        FuseFailure = 97,
        /// A generator failed.
        GeneratorFailure = 98,
        /// A battery is nearly empty.
        LowBattery = 99,
        /// Fuel is nearly used up.
        LowFuel = 100,
        /// Water is nearly used up.
        LowWater = 101,
        /// There is gas that may explode.
        ExplosiveGas = 102,
        /// There is a storm.
        HighWinds = 103,
        /// There is ice.
        IceBuildup = 104,
        /// There is smoke.
        Smoke = 105,
        /// Memory is not what it should be.
        MemoryMismatch = 106,
        /// Processor time is used up.
        OutOfCpuCycles = 107,
        /// What a program runs in does not suit it.
        SoftwareEnvironmentProblem = 108,
        /// A program could not be fetched.
        SoftwareDownloadFailure = 109,
        /// A part began anew.
        ElementReinitialized = 110,
        /// Something took too long.
        Timeout = 111,
        /// A log could not be written.
        LoggingProblems = 112,
        /// Something leaks.
        LeakDetected = 113,
        /// What protects failed.
        ProtectionMechanismFailure = 114,
        /// A resource that protects another failed.
        ProtectingResourceFailure = 115,
        /// A database contradicts itself.
        DatabaseInconsistency = 116,
        /// Somebody could not prove who he is.
        AuthenticationFailure = 117,
        /// Somebody read what he may not.
        BreachOfConfidentiality = 118,
        /// Somebody was at a cable.
        CableTamper = 119,
        /// Something came late.
        DelayedInformation = 120,
        /// Something came twice.
        DuplicateInformation = 121,
        /// Something did not come.
        InformationMissing = 122,
        /// Something was changed on its way.
        InformationModification = 123,
        /// Something came in another order.
        InformationOutOfSequence = 124,
        /// A key or certificate is past its time.
        KeyExpired = 125,
        /// Who did something cannot be proven.
        NonRepudiationFailure = 126,
        /// Something was done outside its hours.
        OutOfHoursActivity = 127,
        /// Something was taken out of service.
        OutOfService = 128,
        /// Something was done in the wrong way or order.
        ProceduralError = 129,
        /// Something came that was not expected.
        UnexpectedInformation = 130,
    }
);

impl CimStatusCode {
    /// The name that CIM's documents have for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "CIM_ERR_FAILED",
            Self::AccessDenied => "CIM_ERR_ACCESS_DENIED",
            Self::InvalidNamespace => "CIM_ERR_INVALID_NAMESPACE",
            Self::InvalidParameter => "CIM_ERR_INVALID_PARAMETER",
            Self::InvalidClass => "CIM_ERR_INVALID_CLASS",
            Self::NotFound => "CIM_ERR_NOT_FOUND",
            Self::NotSupported => "CIM_ERR_NOT_SUPPORTED",
            Self::ClassHasChildren => "CIM_ERR_CLASS_HAS_CHILDREN",
            Self::ClassHasInstances => "CIM_ERR_CLASS_HAS_INSTANCES",
            Self::InvalidSuperclass => "CIM_ERR_INVALID_SUPERCLASS",
            Self::AlreadyExists => "CIM_ERR_ALREADY_EXISTS",
            Self::NoSuchProperty => "CIM_ERR_NO_SUCH_PROPERTY",
            Self::TypeMismatch => "CIM_ERR_TYPE_MISMATCH",
            Self::QueryLanguageNotSupported => "CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED",
            Self::InvalidQuery => "CIM_ERR_INVALID_QUERY",
            Self::MethodNotAvailable => "CIM_ERR_METHOD_NOT_AVAILABLE",
            Self::MethodNotFound => "CIM_ERR_METHOD_NOT_FOUND",
            Self::UnexpectedResponse => "CIM_ERR_UNEXPECTED_RESPONSE",
            Self::InvalidResponseDestination => "CIM_ERR_INVALID_RESPONSE_DESTINATION",
            Self::NamespaceNotEmpty => "CIM_ERR_NAMESPACE_NOT_EMPTY",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_whole() {
        assert!(ErrorType::ALL.iter().map(|value| value.number()).eq(0..=10));
        assert!(PerceivedSeverity::ALL.iter().map(|value| value.number()).eq([0, 2, 3, 4, 5]));
        assert!(ErrorSourceFormat::ALL.iter().map(|value| value.number()).eq(0..=2));
        assert!(CimStatusCode::ALL.iter().map(|value| value.number()).eq(1..=20));
        assert!(ProbableCause::ALL.iter().map(|value| value.number()).eq(0..=130));
    }
}
