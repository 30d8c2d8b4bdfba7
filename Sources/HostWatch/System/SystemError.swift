import CFanotify

/// A system call that failed: which one, and how.
public struct SystemError: Error, Sendable, Equatable, CustomStringConvertible {
  /// The call, as its man page names it, with what it was about if that helps:
  /// `"fanotify_mark(/srv/src)"`.
  public let call: String
  /// A positive errno.
  public let code: Int32

  /// `code` is a positive errno.
  public init(_ call: String, _ code: Int32) {
    self.call = call
    self.code = code
  }

  /// `"fanotify_mark: Operation not supported (EOPNOTSUPP)"`.
  public var description: String {
    "\(call): \(SystemError.text(code)) (\(SystemError.name(code)))"
  }

  /// strerror(3)'s text.
  public static func text(_ code: Int32) -> String {
    unsafe String(cString: strerror(code))
  }

  /// The constant's name, as strerrorname_np(3) gives it: `"ENOENT"`.
  public static func name(_ code: Int32) -> String {
    guard let name = unsafe hw_error_name(code) else { return "errno \(code)" }
    return unsafe String(cString: name)
  }
}

/// Returns what a `hw_` function returned unless that is `-errno`.
@discardableResult
func checked(_ result: Int32, _ call: @autoclosure () -> String) throws(SystemError) -> Int32 {
  guard result >= 0 else { throw SystemError(call(), -result) }
  return result
}
