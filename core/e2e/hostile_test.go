package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// rss is the resident memory of a process in bytes.
func rss(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

// mutate spoils some bytes of a good body, or cuts it, or repeats it.
func mutate(r *rand.Rand, body []byte) []byte {
	b := bytes.Clone(body)
	for range 1 + r.IntN(4) {
		switch r.IntN(5) {
		case 0:
			b[r.IntN(len(b))] = byte(r.IntN(256))
		case 1:
			b = b[:1+r.IntN(len(b))]
		case 2:
			i := r.IntN(len(b))
			b = append(b[:i:i], append([]byte(strings.Repeat("[", r.IntN(300))), b[i:]...)...)
		case 3:
			i := r.IntN(len(b))
			b = append(b[:i:i], append([]byte{0xff, 0xfe, 0x80}, b[i:]...)...)
		case 4:
			i := r.IntN(len(b))
			b = append(b[:i:i], append(bytes.Repeat([]byte("9"), r.IntN(400)), b[i:]...)...)
		}
	}
	return b
}

func TestMalformedRequestsGet4xxAndTheDaemonsStayUp(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	const seed, rounds = 20260101, 3000
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	goodJSON := []byte(`{"type":"ACCEPT","framework_id":{"value":"f"},"accept":{"offer_ids":[{"value":"o"}],"filters":{"refuse_seconds":5.0}}}`)
	goodPB, err := proto.Marshal(&schedulerv1.Call{
		Type: schedulerv1.Call_ACCEPT.Enum(), FrameworkId: &mesosv1.FrameworkID{Value: proto.String("f")},
		Accept: &schedulerv1.Call_Accept{OfferIds: []*mesosv1.OfferID{{Value: proto.String("o")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	targets := []struct{ addr, path string }{
		{c.Master, "/api/v1/scheduler"}, {c.Master, "/api/v1"}, {c.Agent, "/api/v1"}, {c.Agent, "/api/v1/executor"},
	}
	media := []string{"application/json", "application/x-protobuf"}
	before := rss(t, c.MasterPid())
	for i := range rounds {
		target := targets[i%len(targets)]
		m := media[r.IntN(2)]
		body := goodJSON
		if m != media[0] {
			body = goodPB
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		resp, err := post(ctx, target.addr, target.path, m, "", mutate(r, body))
		if err != nil {
			t.Fatalf("round %d at %s: %v", i, target.path, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		cancel()
		// 501 is Mesos's answer to a type it does not know; no body of ours can be right.
		if (resp.StatusCode < 400 || resp.StatusCode > 499) && resp.StatusCode != http.StatusNotImplemented {
			t.Fatalf("round %d at %s: answered %d, want 4xx", i, target.path, resp.StatusCode)
		}
	}
	for _, raw := range []string{
		"GET / HTTP/9.9\r\n\r\n", "\x00\x01\x02\r\n\r\n", "POST /api/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
		"POST /api/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"POST /api/v1 HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 100000) + "\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
	} {
		conn, err := net.DialTimeout("tcp", c.Master, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(conn, raw)
		answer, _ := io.ReadAll(io.LimitReader(conn, 4096))
		conn.Close()
		if bytes.HasPrefix(answer, []byte("HTTP/1.1 2")) {
			t.Errorf("%.40q was answered %.60q", raw, answer)
		}
	}
	if after := rss(t, c.MasterPid()); after > before+64<<20 {
		t.Errorf("memory went from %d to %d MiB", before>>20, after>>20)
	}
	mosaic(t, c, 0, "run", "--", "true")
}
