import CFanotify

/// The one owner of a file descriptor: closes it when it goes.
///
/// It is lent by borrowing; `take()` gives the ownership away.
public struct OwnedDescriptor: ~Copyable {
  /// The number, for a call made while this value lives.
  public let rawValue: Int32

  /// Takes over `rawValue`, which nobody else may close from here on.
  public init(_ rawValue: Int32) {
    precondition(rawValue >= 0, "a descriptor is not negative")
    self.rawValue = rawValue
  }

  deinit { _ = close(rawValue) }

  /// Gives the number to a new owner, who has to close it.
  public consuming func take() -> Int32 {
    let number = rawValue
    discard self
    return number
  }

  /// A second descriptor of the same open file.
  ///
  /// - Throws: EMFILE: this process may have no more descriptors.
  public borrowing func duplicate() throws(SystemError) -> OwnedDescriptor {
    OwnedDescriptor(try checked(hw_duplicate(rawValue), "fcntl(F_DUPFD_CLOEXEC)"))
  }
}
