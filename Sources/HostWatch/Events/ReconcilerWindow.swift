/// What the reconciler remembers of the records of one window: which objects
/// they were about, and which entries of which directories each has touched.
///
/// The objects are found by their handle's 64-bit hash, seeded at random; two
/// objects with one hash would be looked up without need, and nothing else.
struct ReconcilerWindow: ~Copyable {
  struct ObjectFlags: OptionSet, BitwiseCopyable {
    let rawValue: UInt8
    /// Its link count changed and it was not seen to die: it may have been
    /// linked or unlinked.
    static let linked = ObjectFlags(rawValue: 1)
    /// DELETE_SELF was seen.
    static let dead = ObjectFlags(rawValue: 2)
    /// It came back to where it had been: a record may stand for several.
    static let revisited = ObjectFlags(rawValue: 4)
    static let isDirectory = ObjectFlags(rawValue: 8)
    /// Something was added since it was settled last.
    static let dirty = ObjectFlags(rawValue: 16)
    static let listed = ObjectFlags(rawValue: 32)
    /// A rename is known to have removed it.
    static let displaced = ObjectFlags(rawValue: 64)
  }

  struct Object: BitwiseCopyable {
    var hash: UInt64
    /// An event that has its handle.
    var event: UInt32
    var first: Int32 = -1
    var last: Int32 = -1
    var touches: UInt32 = 0
    var flags: ObjectFlags = []
  }

  /// That an entry came to hold an object, or ceased to.
  struct Touch: BitwiseCopyable {
    var entry: UInt64
    var object: UInt32
    /// The event, or `noEvent` for one the reconciler made itself.
    var event: UInt32
    var next: Int32 = -1
    var sets: Bool
    /// The entry is the event's new directory and new name.
    var isNew: Bool
  }

  static let noEvent = UInt32.max
  /// An object that was moved more often is looked up without further thought.
  private static let longestSimplePath: UInt32 = 16

  private(set) var objects: [Object] = []
  private(set) var touches: [Touch] = []
  private var table = [UInt32](repeating: 0, count: 1024)
  /// Objects that may have to be looked up or checked.
  private(set) var suspects: [UInt32] = []
  /// How many touches had been noted when it was settled last.
  private(set) var settledTouches = 0

  var isEmpty: Bool { objects.isEmpty }

  /// What it has allocated.
  var bytes: Int {
    objects.capacity * MemoryLayout<Object>.stride + touches.capacity * MemoryLayout<Touch>.stride
      + (table.capacity + suspects.capacity) * MemoryLayout<UInt32>.stride
  }

  /// The object's index, made if it is new. `event` has its handle.
  mutating func object(_ hash: UInt64, event: UInt32) -> Int {
    if (objects.count + 1) * 2 > table.count { grow() }
    var position = Int(truncatingIfNeeded: hash >> 7) & (table.count - 1)
    while table[position] != 0 {
      let index = Int(table[position]) - 1
      if objects[index].hash == hash { return index }
      position = (position + 1) & (table.count - 1)
    }
    objects.append(Object(hash: hash, event: event))
    table[position] = UInt32(objects.count)
    return objects.count - 1
  }

  mutating func flag(_ object: Int, _ flags: ObjectFlags) {
    objects[object].flags.formUnion(flags.union(.dirty))
    list(object)
  }

  mutating func add(_ touch: Touch, isDirectory: Bool) {
    let object = Int(touch.object)
    if isDirectory { objects[object].flags.insert(.isDirectory) }
    if touch.event != Self.noEvent { noteVisit(touch) }
    let index = Int32(touches.count)
    touches.append(touch)
    if objects[object].last < 0 {
      objects[object].first = index
    } else {
      touches[Int(objects[object].last)].next = index
    }
    objects[object].last = index
    objects[object].touches += 1
    if touch.event != Self.noEvent { objects[object].flags.insert(.dirty) }
    list(object)
  }

  /// An object's touches, in the order of the records.
  func forEachTouch(of object: Int, _ body: (Touch) -> Void) {
    var index = objects[object].first
    while index >= 0 {
      body(touches[Int(index)])
      index = touches[Int(index)].next
    }
  }

  /// The object's index if there is one.
  func find(_ hash: UInt64) -> Int? {
    var position = Int(truncatingIfNeeded: hash >> 7) & (table.count - 1)
    while table[position] != 0 {
      let index = Int(table[position]) - 1
      if objects[index].hash == hash { return index }
      position = (position + 1) & (table.count - 1)
    }
    return nil
  }

  /// Whether a record of the window took away the name that the object had last.
  func hasLostName(_ object: Int) -> Bool {
    let last = objects[object].last
    return objects[object].flags.contains(.displaced)
      || (last >= 0 && !touches[Int(last)].sets)
  }

  /// Whether the object died without a record that took it from where its
  /// records put it last: another object came there by a rename.
  func wasDisplaced(_ object: Int) -> Bool {
    let last = objects[object].last
    return objects[object].flags.contains(.dead) && last >= 0 && touches[Int(last)].sets
  }

  /// Everything noted so far has been settled.
  mutating func markSettled() {
    for suspect in suspects { objects[Int(suspect)].flags.remove(.dirty) }
    settledTouches = touches.count
  }

  mutating func removeAll() {
    if objects.count * 4 > table.count {
      for index in table.indices { table[index] = 0 }
    } else {
      for object in objects { clear(object.hash) }
    }
    objects.removeAll(keepingCapacity: true)
    touches.removeAll(keepingCapacity: true)
    suspects.removeAll(keepingCapacity: true)
    settledTouches = 0
  }

  /// Entering an entry twice, leaving it twice, or coming back to one that was
  /// left: from here on records of this object may stand for more than one
  /// operation each.
  private mutating func noteVisit(_ touch: Touch) {
    let object = Int(touch.object)
    if objects[object].touches >= Self.longestSimplePath {
      objects[object].flags.insert(.revisited)
      return
    }
    var index = objects[object].first
    while index >= 0 {
      let earlier = touches[Int(index)]
      if earlier.entry == touch.entry && (earlier.sets == touch.sets || touch.sets) {
        objects[object].flags.insert(.revisited)
        return
      }
      index = earlier.next
    }
  }

  private mutating func list(_ object: Int) {
    let flags = objects[object].flags
    guard !flags.contains(.listed),
      !flags.isDisjoint(with: [.linked, .revisited]) || wasDisplaced(object)
    else { return }
    objects[object].flags.insert(.listed)
    suspects.append(UInt32(object))
  }

  /// Empties the place of an object. All objects go in one sweep, so that
  /// probing past emptied places does not matter.
  private mutating func clear(_ hash: UInt64) {
    var position = Int(truncatingIfNeeded: hash >> 7) & (table.count - 1)
    while true {
      if table[position] == 0 { return }
      table[position] = 0
      position = (position + 1) & (table.count - 1)
    }
  }

  private mutating func grow() {
    table = [UInt32](repeating: 0, count: table.count * 4)
    for (index, object) in objects.enumerated() {
      var position = Int(truncatingIfNeeded: object.hash >> 7) & (table.count - 1)
      while table[position] != 0 { position = (position + 1) & (table.count - 1) }
      table[position] = UInt32(index + 1)
    }
  }
}
