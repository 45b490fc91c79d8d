package api_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// acceptCall is a call with every kind of field in it, of a framework that nobody knows: well formed,
// it is a 400 by the master, not by the decoder.
func acceptCall() *schedulerv1.Call {
	task := &mesosv1.TaskInfo{
		Name: proto.String("t"), TaskId: &mesosv1.TaskID{Value: proto.String("t1")}, AgentId: &mesosv1.AgentID{Value: proto.String("a")},
		Resources: []*mesosv1.Resource{
			{Name: proto.String("cpus"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(0.5)}},
			{Name: proto.String("ports"), Type: mesosv1.Value_RANGES.Enum(), Ranges: &mesosv1.Value_Ranges{Range: []*mesosv1.Value_Range{{Begin: proto.Uint64(1), End: proto.Uint64(2)}}}},
		},
		Command: &mesosv1.CommandInfo{Shell: proto.Bool(false), Value: proto.String("/bin/true"), Arguments: []string{"true"}},
		Limits:  map[string]*mesosv1.Value_Scalar{"cpus": {Value: proto.Float64(1)}},
		Data:    []byte("data"),
	}
	return &schedulerv1.Call{
		FrameworkId: &mesosv1.FrameworkID{Value: proto.String("nobody")},
		Type:        schedulerv1.Call_ACCEPT.Enum(),
		Accept: &schedulerv1.Call_Accept{
			OfferIds:   []*mesosv1.OfferID{{Value: proto.String("o")}},
			Operations: []*mesosv1.Offer_Operation{{Type: mesosv1.Offer_Operation_LAUNCH.Enum(), Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: []*mesosv1.TaskInfo{task}}}},
		},
	}
}

// A variant is a body that some check must refuse.
type variant struct{ contentType, body string }

// malformed generates thousands of variants: every truncation of a good call, every value replaced by
// ones of other kinds, single bytes changed at random, and the classic killers.
func malformed(t *testing.T) []variant {
	var all []variant
	json, pb := encode(t, codec.JSON, acceptCall()), encode(t, codec.Protobuf, acceptCall())
	for i := range json {
		all = append(all, variant{"application/json", json[:i]})
	}
	for i := range pb {
		all = append(all, variant{"application/x-protobuf", pb[:i]})
	}
	random := rand.New(rand.NewPCG(2, 2026))
	for range 2000 {
		b := []byte(json)
		b[random.IntN(len(b))] = byte(random.IntN(256))
		all = append(all, variant{"application/json", string(b)})
		b = []byte(pb)
		b[random.IntN(len(b))] = byte(random.IntN(256))
		all = append(all, variant{"application/x-protobuf", string(b)})
	}
	for _, value := range []string{`"o"`, `0.5`, `"cpus"`, `false`, `"LAUNCH"`, `1`, `"ZGF0YQ=="`, `{"value":"a"}`} {
		for _, other := range []string{
			`[]`, `[[]]`, `{}`, `{"value":[]}`, `1e999`, `-`, `"\ud800"`, `tru`, `nul`, `"` + "\xff" + `"`, "\"\n\"", `'o'`, `/**/1`, `NaNa`,
			strings.Repeat(`{"value":`, 200), strings.Repeat(`[`, 5000), strings.Repeat("9", 5000), `"` + strings.Repeat("x", 50000),
		} {
			for at := strings.Index(json, value); at >= 0; {
				all = append(all, variant{"application/json", json[:at] + other + json[at+len(value):]})
				next := strings.Index(json[at+1:], value)
				if next < 0 {
					break
				}
				at += 1 + next
			}
		}
	}
	nested := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "c")
	for range 3000 {
		nested = protowire.AppendBytes(protowire.AppendTag(append([]byte(nil), nested[:3]...), 2, protowire.BytesType), nested)
	}
	for _, b := range []string{
		"", "\x00", "\xff", "\x10", "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "\x0a\xff\xff\xff\xff\x0f", "\x0b\x0b\x0b",
		strings.Repeat("\x0b", 100000), string(nested), "\x10\x03", "\x0a\x02\x0a\x00", strings.Repeat("\x22\x02\x12\x00", 10000),
	} {
		all = append(all, variant{"application/x-protobuf", b})
	}
	for _, b := range []string{"", " ", "null", "true", "1", `"x"`, "[]", "{}", "{}{}", `{"type":"ACCEPT"}`, "\xef\xbb\xbf{}", "<xml/>", strings.Repeat("[", 1<<20), strings.Repeat(`{"accept":`, 1<<16)} {
		all = append(all, variant{"application/json", b})
	}
	return all
}

func TestThousandsOfMalformedBodiesAreEach4xxAtNoCost(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	agent := serveAgent(t, newFakeAgent())
	variants := malformed(t)
	if len(variants) < 4000 {
		t.Fatalf("%d variants, want thousands", len(variants))
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	targets := []string{server.URL + "/api/v1/scheduler", server.URL + "/api/v1", agent.URL + "/api/v1/executor", agent.URL + "/api/v1"}
	send := func(v variant, target string) {
		resp, err := client.Do(request(t, "POST", target, v.body, "Content-Type: "+v.contentType))
		if err != nil {
			t.Fatalf("%s %.100q: %v", target, v.body, err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode < 400 || resp.StatusCode > 499 {
			t.Errorf("%s %s %.300q: %d, %v; want 4xx", target, v.contentType, v.body, resp.StatusCode, err)
		}
	}
	for _, v := range variants[:200] {
		send(v, targets[0]) // pools and caches fill
	}
	before := heap()
	for i, v := range variants {
		send(v, targets[0])
		send(v, targets[1+i%3])
	}
	if after := heap(); after > before+8<<20 {
		t.Errorf("%d requests took the heap from %d to %d bytes", 2*len(variants), before, after)
	}
}

// heap returns the bytes in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // pools give back what they hold at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestMalformedRecordsAreEach4xx(t *testing.T) {
	agent := serveAgent(t, newFakeAgent())
	first := recordio.Append(nil, []byte(`{"type":"ATTACH_CONTAINER_INPUT","attach_container_input":{"type":"CONTAINER_ID","container_id":{"value":"c"}}}`))
	second := recordio.Append(nil, []byte(`{"type":"ATTACH_CONTAINER_INPUT","attach_container_input":{"type":"PROCESS_IO","process_io":{"type":"DATA","data":{"type":"STDIN","data":"eA=="}}}}`))
	whole := string(first) + string(second)
	var bodies []string
	for i := range whole {
		if i != len(first) { // the container alone is input that ends at once
			bodies = append(bodies, whole[:i])
		}
	}
	for _, header := range []string{"", "x", "-1", "+1", " 1", "1 ", "0x10", "1e3", "1\r", "99999999999999999999", "999999999999999999999999", "18446744073709551616", "1048577", "\xff", "\x00", "٣"} {
		bodies = append(bodies, header+"\n"+whole, string(first)+header+"\nx")
	}
	random := rand.New(rand.NewPCG(3, 2026))
	for range 500 {
		b := make([]byte, 1+random.IntN(40))
		for i := range b {
			b[i] = byte(random.IntN(256))
		}
		bodies = append(bodies, string(b))
	}
	for _, body := range bodies {
		resp, text := do(t, request(t, "POST", agent.URL+"/api/v1", body, "Content-Type: application/recordio", "Message-Content-Type: application/json"))
		if resp.StatusCode < 400 || resp.StatusCode > 499 {
			t.Errorf("%.200q: %d %q, want 4xx", body, resp.StatusCode, text)
		}
	}
}

// exchange sends raw bytes and returns the status of the answer, 0 when the connection ended without.
func exchange(t *testing.T, server *httptest.Server, raw string) int {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, raw) // the server may close before it has read all
	_ = conn.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestMalformedHTTPIsRefusedAndTheServerGoesOn(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	post := "POST /api/v1/scheduler HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	raws := []string{
		"", "\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "GET state HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("y", 2<<20) + "\r\n\r\n",
		post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", post + "Content-Length: -1\r\n\r\n", post + "Content-Length: x\r\n\r\n", post + "Content-Length: 100\r\n\r\n{}",
		post + "Content-Length: 99999999999999999999\r\n\r\n{}", post + "Transfer-Encoding: gzip\r\n\r\n{}",
		post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}", post + "Transfer-Encoding: chunked\r\n\r\n5\r\n{}", post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
		post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n", post + "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}", post + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
	}
	whole := post + "Content-Length: 2\r\n\r\n{}"
	for i := range whole {
		raws = append(raws, whole[:i])
	}
	random := rand.New(rand.NewPCG(4, 2026))
	for range 500 {
		b := []byte(whole)
		for range 1 + random.IntN(3) {
			b[random.IntN(len(b))] = byte(random.IntN(256))
		}
		raws = append(raws, string(b))
	}
	for _, raw := range raws {
		// Some changes leave a request that is answered properly (GET / with another host).
		if status := exchange(t, server, raw); status >= 500 && status != http.StatusHTTPVersionNotSupported && status != http.StatusNotImplemented {
			t.Errorf("%.200q: %d", raw, status)
		}
	}
	if status := exchange(t, server, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"); status != 200 {
		t.Errorf("/health afterwards: %d", status)
	}
}

func TestBodiesAreBoundedBeforeAndAfterDecompression(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	const limit = 32 << 20
	// One piece, over and over, which is a gzip file too: compressing 20 times the limit takes minutes under the race detector.
	const piece = 1 << 20
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	if _, err := io.CopyN(z, zeros{}, piece); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	bomb := bytes.Repeat(member.Bytes(), 20*limit/piece)
	for what, headers := range map[string][]string{"plain": {sendJSON}, "bomb": {sendJSON, "Content-Encoding: gzip"}} {
		body := io.Reader(bytes.NewReader(bomb))
		if what == "plain" {
			body = io.LimitReader(zeros{}, limit+1)
		}
		r := request(t, "POST", server.URL+"/api/v1/scheduler", "", headers...)
		r.Body, r.ContentLength = io.NopCloser(body), -1
		if resp, text := do(t, r); resp.StatusCode != 413 {
			t.Errorf("%s: %d %q, want 413", what, resp.StatusCode, text)
		}
	}
	var good bytes.Buffer
	z = gzip.NewWriter(&good)
	fmt.Fprint(z, `{"type":"GET_HEALTH"}`)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if resp, text := do(t, request(t, "POST", server.URL+"/api/v1", good.String(), sendJSON, "Content-Encoding: gzip")); resp.StatusCode != 200 {
		t.Errorf("a compressed call: %d %q, want 200", resp.StatusCode, text)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// A body that drips is given 45 s, not more, also where nobody wants it.
func TestABodyThatDoesNotArriveIsGivenUp(t *testing.T) {
	for head, want := range map[string]int{
		"POST /api/v1/scheduler HTTP/1.1\r\nContent-Type: application/json": 408,
		"POST /api/v1/scheduler HTTP/1.1\r\nContent-Type: text/plain":       415,
		"GET /state HTTP/1.1": 200,
	} {
		synctest.Test(t, func(t *testing.T) {
			conns := make(pipeListener, 1)
			server := &http.Server{Handler: api.NewMaster(testConfig(t), api.MasterDeps{Master: newFakeMaster()})}
			served := make(chan error, 1)
			go func() { served <- server.Serve(conns) }()
			here, there := net.Pipe()
			conns <- there
			begin := time.Now()
			fmt.Fprintf(here, "%s\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", head)
			resp, err := http.ReadResponse(bufio.NewReader(here), nil)
			if err != nil || resp.StatusCode != want || time.Since(begin) != 45*time.Second {
				t.Errorf("%s: after %v: %v, %v; want %d after 45 s", head, time.Since(begin), resp, err, want)
			}
			here.Close()
			server.Close()
			<-served
		})
	}
}

// pipeListener accepts the connections that a test puts in.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l pipeListener) Close() error {
	close(l)
	return nil
}

func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
