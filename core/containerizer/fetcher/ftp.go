package fetcher

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// FTP as Mesos's fetcher has it, for those whose files are there and nowhere else: one file, in binary, by a passive
// connection; ftps is that with TLS from the first byte on, as curl understands the scheme. Paths are relative to the
// folder that the server begins in; one that begins with %2F is absolute.
//
// Source: RFC 959, RFC 2428 (EPSV), RFC 4217 (PBSZ and PROT), RFC 1738 section 3.2.

const (
	ftpPort, ftpsPort = "21", "990"
	// maxReply bounds one answer of a server; greetings are the longest, at a few KiB.
	maxReply = 64 << 10
)

// ftp is a session with a server, for one file.
type ftp struct {
	f       *Fetcher
	secure  bool
	tls     *tls.Config
	control net.Conn
	in      *bufio.Reader
	data    net.Conn
	size    int64 // -1: the server does not say
	came    int64
	watches []func() bool // over the context, each to be ended
	ended   error         // set when all is read
}

// openFTP asks for a file and returns its bytes, whose end is an error unless the server says that all of it came.
func (f *Fetcher) openFTP(ctx context.Context, u *url.URL) (io.ReadCloser, int64, error) {
	name := strings.TrimPrefix(u.Path, "/")
	user, password := "anonymous", "mosaic@"
	if u.User != nil {
		user = u.User.Username()
		password, _ = u.User.Password()
	}
	for _, s := range []string{name, user, password} {
		if strings.ContainsAny(s, "\r\n\x00") { // the next line would be a command of its own
			return nil, 0, errors.New("URI with a line end or a zero byte")
		}
	}
	if name == "" || strings.HasSuffix(name, "/") {
		return nil, 0, errors.New("URI of a folder")
	}
	s := &ftp{f: f, secure: u.Scheme == "ftps", size: -1}
	port := u.Port()
	if s.secure {
		s.tls = f.tls.Clone()
		s.tls.ServerName = u.Hostname()
		s.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1) // servers ask that the data's session be the control's
		if port == "" {
			port = ftpsPort
		}
	} else if port == "" {
		port = ftpPort
	}
	control, err := s.dial(ctx, net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, 0, err
	}
	s.control, s.in = control, bufio.NewReader(control)
	s.watch(ctx, control)
	if err := s.ask(ctx, user, password, name); err != nil {
		return nil, 0, errors.Join(err, s.Close())
	}
	return s, s.size, nil
}

// ask logs in and has the server begin to send.
func (s *ftp) ask(ctx context.Context, user, password, name string) error {
	if _, err := s.reply("the greeting", 220); err != nil {
		return err
	}
	code, err := s.command("USER", user, 230, 331)
	if err == nil && code.code == 331 {
		_, err = s.command("PASS", password, 230, 202)
	}
	if err != nil {
		return err
	}
	if s.secure {
		if _, err := s.command("PBSZ", "0", 200); err != nil {
			return err
		}
		if _, err := s.command("PROT", "P", 200); err != nil {
			return err
		}
	}
	if _, err := s.command("TYPE", "I", 200); err != nil {
		return err
	}
	if r, err := s.command("SIZE", name, 213); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(r.text), 10, 64); err == nil && n >= 0 {
			s.size = n
		}
	} else if !errors.As(err, new(*refusal)) {
		return err
	}
	where, err := s.passive()
	if err != nil {
		return err
	}
	// The handshake of TLS waits for the server to have read RETR.
	plain, err := s.connect(ctx, where)
	if err != nil {
		return err
	}
	s.data = plain
	s.watch(ctx, plain)
	if _, err := s.command("RETR", name, 125, 150); err != nil {
		return err
	}
	if s.secure {
		secure := tls.Client(plain, s.tls)
		s.data = secure
		return secure.HandshakeContext(ctx)
	}
	return nil
}

// connect opens a connection without TLS.
func (s *ftp) connect(ctx context.Context, address string) (net.Conn, error) {
	return s.f.dialer.DialContext(ctx, "tcp", address)
}

// dial opens a connection, with TLS if the scheme says so.
func (s *ftp) dial(ctx context.Context, address string) (net.Conn, error) {
	plain, err := s.connect(ctx, address)
	if err != nil || !s.secure {
		return plain, err
	}
	secure := tls.Client(plain, s.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	return secure, nil
}

// passive asks where the data will be. Only the port is believed: with an address the server could send us anywhere.
func (s *ftp) passive() (string, error) {
	host, _, err := net.SplitHostPort(s.control.RemoteAddr().String())
	if err != nil {
		return "", err
	}
	var port uint64
	r, err := s.command("EPSV", "", 229)
	switch {
	case err == nil:
		if open, end := strings.Index(r.text, "(|||"), strings.Index(r.text, "|)"); open >= 0 && end > open+4 {
			if port, err = strconv.ParseUint(r.text[open+4:end], 10, 16); err != nil {
				port = 0
			}
		}
	case errors.As(err, new(*refusal)):
		if r, err = s.command("PASV", "", 227); err != nil {
			return "", err
		}
		digits := strings.Split(strings.TrimFunc(r.text, func(c rune) bool { return c < '0' || c > '9' }), ",")
		if len(digits) == 6 {
			high, e1 := strconv.ParseUint(digits[4], 10, 8)
			low, e2 := strconv.ParseUint(digits[5], 10, 8)
			if e1 == nil && e2 == nil {
				port = high<<8 | low
			}
		}
	default:
		return "", err
	}
	if port == 0 {
		return "", fmt.Errorf("server names no port for the data: %.100q", r.text)
	}
	return net.JoinHostPort(host, strconv.FormatUint(port, 10)), nil
}

// refusal is a server's answer that it does not do what was asked.
type refusal struct {
	what string
	code int
	text string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("server answered %s with %d %.200s", r.what, r.code, strings.ToValidUTF8(r.text, "?"))
}

// command sends a command and waits for one of the answers that are well. Its error is a *refusal for any other.
func (s *ftp) command(verb, argument string, well ...int) (refusal, error) {
	line := verb
	if argument != "" {
		line += " " + argument
	}
	if _, err := io.WriteString(s.control, line+"\r\n"); err != nil {
		return refusal{}, err
	}
	return s.reply(verb, well...)
}

// reply reads one answer, of one line or several.
func (s *ftp) reply(what string, well ...int) (refusal, error) {
	r := refusal{what: what}
	var first string
	for left := maxReply; ; {
		line, err := readLine(s.in, &left)
		if err != nil {
			return r, fmt.Errorf("%s: %w", what, err)
		}
		if first == "" {
			if len(line) < 4 || line[3] != ' ' && line[3] != '-' {
				return r, fmt.Errorf("%s: %.100q is no answer of FTP", what, line)
			}
			if r.code, err = strconv.Atoi(line[:3]); err != nil || r.code < 100 {
				return r, fmt.Errorf("%s: %.100q is no answer of FTP", what, line)
			}
			first, r.text = line[:3], line[4:]
			if line[3] == ' ' {
				break
			}
			continue
		}
		if strings.HasPrefix(line, first+" ") {
			break
		}
	}
	for _, code := range well {
		if r.code == code {
			return r, nil
		}
	}
	return r, &r
}

// readLine reads a line, which takes its length from left.
func readLine(in *bufio.Reader, left *int) (string, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if *left -= len(part); *left < 0 {
			return "", fmt.Errorf("an answer of more than %d bytes", maxReply)
		}
		line = append(line, part...)
		if err == nil {
			return strings.TrimRight(string(line), "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
}

// Read reads the file. At its end the server must say that it was all.
func (s *ftp) Read(b []byte) (int, error) {
	if s.ended != nil {
		return 0, s.ended
	}
	n, err := s.data.Read(b)
	s.came += int64(n)
	if errors.Is(err, io.EOF) {
		err = s.finish()
	}
	s.ended = err
	return n, err
}

// finish returns io.EOF if the file came whole.
func (s *ftp) finish() error {
	if err := s.data.Close(); err != nil { // some wait for that
		return err
	}
	if _, err := s.reply("the end of the file", 226, 250); err != nil {
		return err
	}
	if s.size >= 0 && s.came != s.size {
		return fmt.Errorf("%d of %d bytes came", s.came, s.size)
	}
	return io.EOF
}

// watch closes a connection at the context's end, which ends all calls that wait for it.
func (s *ftp) watch(ctx context.Context, c net.Conn) {
	s.watches = append(s.watches, context.AfterFunc(ctx, func() { _ = c.Close() }))
}

// Close ends the session.
func (s *ftp) Close() error {
	for _, end := range s.watches {
		end()
	}
	if s.data != nil {
		_ = s.data.Close() // closed already when all went well
	}
	return s.control.Close()
}
