// Package wire is what an agent, a shim and the stage before a container's command say to each
// other: length-framed messages with hand-written binary fields.
//
// It is linked into every shim, whose memory is paid once per container, so it uses neither
// reflection nor formatted printing and sets nothing up at start. Decoding is total: any input
// gives a value or ErrMalformed, and nothing is allocated beyond the size of the input.
//
// Versions: a shim outlives the agent that started it, so a newer agent may meet an older shim.
// Requests are never renumbered, and fields are only added at the end of a payload.
package wire

import "errors"

// Requests of an agent to its shim, and below them the answers. Each answer carries the id of its
// request.
const (
	// Spec; first frame of a new shim, or of a connection to one that is to keep one more container, which the connection
	// is about from then on. Answered by Created or Error.
	KindCreate  = 1
	KindState   = 2 // empty; answered by State.
	KindStart   = 3 // empty; answered by OK or Error.
	KindWait    = 4 // empty; answered by Exit when the first process has ended.
	KindSignal  = 5 // uint32 signal number; answered by OK or Error.
	KindKill    = 6 // empty; answered by OK when no descendant of the shim is left.
	KindRelease = 7 // empty; answered by OK, then the shim ends. Refused while the process lives.
	KindStage   = 8 // Stage; first frame of a stage.
	KindResize  = 9 // uint32 rows and columns of the terminal; answered by OK or Error.

	// KindRuntime, empty, comes with the descriptor of a runtime, for a shim that was handed none. Answered by OK or Error.
	KindRuntime = 14

	// KindAttach, empty, is the first frame of a connection that turns into a stream. Answered by OK or Error. A stream's
	// frames carry no id. The client sends the kinds below it and gets the Out kinds.
	KindAttach   = 10
	KindRead     = 11 // empty; asks for the output, once.
	KindInput    = 12 // bytes for the process
	KindInputEnd = 13 // empty; no input follows, from anyone.

	KindOK      = 64
	KindError   = 65 // errno and text
	KindCreated = 66 // State
	KindStateIs = 67 // State
	KindExit    = 68 // State

	KindOut    = 69 // bytes of standard output, or of the terminal
	KindErrOut = 70 // bytes of standard error
	KindOutEnd = 71 // empty; the last frame: all output was given.
	KindSlow   = 72 // empty; the last frame: the client did not keep up.
)

// MaxChunk bounds the bytes of one frame of a stream.
const MaxChunk = 32 << 10

// ErrMalformed is returned for bytes that no encoder here could have written.
var ErrMalformed = errors.New("malformed message")

const (
	// HeaderSize is the length of a frame without its payload: payload length and request id,
	// four bytes each, and the kind.
	HeaderSize = 9
	// MaxPayload bounds one frame. Arguments and environment of a process may not exceed 6 MiB in
	// total on Linux (three quarters of the largest stack counted); with a seccomp filter and
	// limits that fits.
	MaxPayload = 8 << 20
)

// AppendFrame appends a whole frame.
func AppendFrame(b []byte, kind uint8, id uint32, payload []byte) []byte {
	n := uint32(len(payload))
	b = append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24), byte(id), byte(id>>8), byte(id>>16), byte(id>>24), kind)
	return append(b, payload...)
}

// Header reads the first HeaderSize bytes of a frame.
func Header(b []byte) (payload int, kind uint8, id uint32, err error) {
	if len(b) < HeaderSize {
		return 0, 0, 0, ErrMalformed
	}
	n := le32(b)
	if n > MaxPayload {
		return 0, 0, 0, ErrMalformed
	}
	return int(n), b[8], le32(b[4:]), nil
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// State is what a shim knows of its container.
type State struct {
	Pid        int
	StartTicks uint64
	Started    bool
	Exited     bool
	WaitStatus uint32 // wait(2) status, when Exited
	Abilities  uint32 // of the shim, as Can bits
}

// What a shim can do beside what the first ones could.
const (
	CanKeepMore = 1 << 0 // it keeps more containers than its first
	CanRun      = 1 << 1 // it was handed a runtime
	CanTake     = 1 << 2 // it can be handed one later
	CanRoot     = 1 << 3 // its stages put roots together
)

// Append appends the encoding of s.
func (s *State) Append(b []byte) []byte {
	b = appendUint(b, uint64(s.Pid))
	b = appendUint(b, s.StartTicks)
	b = appendBool(b, s.Started)
	b = appendBool(b, s.Exited)
	b = appendUint(b, uint64(s.WaitStatus))
	return appendUint(b, uint64(s.Abilities))
}

// ParseState decodes a State.
func ParseState(b []byte) (State, error) {
	r := reader{b: b}
	s := State{Pid: int(int32(r.uint())), StartTicks: r.uint(), Started: r.bool(), Exited: r.bool(), WaitStatus: uint32(r.uint()), Abilities: uint32(r.uint())}
	return s, r.err
}

// AppendError appends the payload of an Error frame. errno is 0 when there is none.
func AppendError(b []byte, errno int, text string) []byte {
	return appendString(appendUint(b, uint64(errno)), text)
}

// ParseError decodes the payload of an Error frame.
func ParseError(b []byte) (errno int, text string, err error) {
	r := reader{b: b}
	errno, text = int(int32(r.uint())), r.string()
	return errno, text, r.err
}

// AppendUint32 appends the payload of a Signal frame.
func AppendUint32(b []byte, v uint32) []byte { return appendUint(b, uint64(v)) }

// ParseUint32 decodes the payload of a Signal frame.
func ParseUint32(b []byte) (uint32, error) {
	r := reader{b: b}
	v := uint32(r.uint())
	return v, r.err
}

// AppendSize appends the payload of a Resize frame.
func AppendSize(b []byte, rows, columns uint16) []byte {
	return appendUint(appendUint(b, uint64(rows)), uint64(columns))
}

// ParseSize decodes the payload of a Resize frame.
func ParseSize(b []byte) (rows, columns uint16, err error) {
	r := reader{b: b}
	rows, columns = uint16(r.uint()), uint16(r.uint())
	return rows, columns, r.err
}

// A reader takes fields off b. After the first error all fields are zero. Fields missing at the
// end are zero too: an older writer did not know them.
type reader struct {
	b   []byte
	err error
}

func (r *reader) uint() uint64 {
	if len(r.b) == 0 || r.err != nil {
		return 0
	}
	var v uint64
	for i := 0; i < len(r.b) && i < 10; i++ {
		c := r.b[i]
		if i == 9 && c > 1 {
			break
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			r.b = r.b[i+1:]
			return v
		}
	}
	r.fail()
	return 0
}

func (r *reader) bool() bool { return r.uint() != 0 }

func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return string(r.bytes()) }

// count is the length of a list whose elements take at least one byte each.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

// more says whether another of n elements follows. A list that ends early is malformed.
func (r *reader) more(n int) bool {
	if n > 0 && r.err == nil && len(r.b) == 0 {
		r.fail()
	}
	return n > 0 && r.err == nil
}

func (r *reader) strings() []string {
	var v []string
	for n := r.count(); r.more(n); n-- {
		v = append(v, r.string())
	}
	return v
}

func (r *reader) fail() {
	r.b, r.err = nil, ErrMalformed
}

func appendUint(b []byte, v uint64) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendString(b []byte, s string) []byte {
	return append(appendUint(b, uint64(len(s))), s...)
}

func appendBytes(b, s []byte) []byte {
	return append(appendUint(b, uint64(len(s))), s...)
}

func appendStrings(b []byte, v []string) []byte {
	b = appendUint(b, uint64(len(v)))
	for _, s := range v {
		b = appendString(b, s)
	}
	return b
}
