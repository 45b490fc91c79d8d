package operator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"

	"github.com/mosaic-cluster/mosaic/sdk/operator"
)

func listen(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// health answers GET_HEALTH of a master in protobuf and refuses all else.
func health(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		call := &masterv1.Call{}
		if err == nil {
			err = call.UnmarshalVT(body)
		}
		const media = "application/x-protobuf"
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/api/v1" || r.Header.Get("Content-Type") != media ||
			r.Header.Get("Accept") != media || call.GetType() != masterv1.Call_GET_HEALTH {
			t.Errorf("%s %s with %v: %v, %v", r.Method, r.URL, r.Header, call, err)
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		healthy := true
		answer := &masterv1.Response{Type: masterv1.Response_GET_HEALTH.Enum(), GetHealth: &masterv1.Response_GetHealth{Healthy: &healthy}}
		data, err := answer.MarshalVT()
		if err != nil {
			t.Errorf("encode: %v", err)
		}
		_, _ = w.Write(data)
	}
}

var getHealth = &masterv1.Call{Type: masterv1.Call_GET_HEALTH.Enum()}

func TestACallIsAnswered(t *testing.T) {
	addr := listen(t, health(t))
	for name, a := range map[string]string{"host and port": addr, "a URL": "http://" + addr} {
		resp, err := operator.NewMaster(a).Call(timeout(t), getHealth)
		if err != nil || !resp.GetGetHealth().GetHealthy() {
			t.Errorf("%s: GET_HEALTH = %v, %v; want healthy", name, resp, err)
		}
	}
}

func TestACallWithoutAnAnswerSucceeds(t *testing.T) {
	addr := listen(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	if resp, err := operator.NewAgent(addr).Call(timeout(t), &agentv1.Call{Type: agentv1.Call_KILL_CONTAINER.Enum()}); err != nil || resp == nil {
		t.Errorf("KILL_CONTAINER = %v, %v; want an empty answer", resp, err)
	}
}

func TestACallIsSentOnToTheLeader(t *testing.T) {
	leader := listen(t, health(t))
	follower := listen(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "//"+leader+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	resp, err := operator.NewMaster(follower).Call(timeout(t), getHealth)
	if err != nil || !resp.GetGetHealth().GetHealthy() {
		t.Errorf("GET_HEALTH = %v, %v; want the leader's answer", resp, err)
	}
}

func TestARefusalKeepsCodeAndWords(t *testing.T) {
	for _, test := range []struct {
		code int
		text string
		want string
	}{
		{403, "principal eve may not\n", "answered 403: principal eve may not"},
		{503, "", "answered 503 Service Unavailable"},
		{404, "File not found.\n", "answered 404: File not found."},
	} {
		addr := listen(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.code)
			_, _ = io.WriteString(w, test.text)
		})
		for name, do := range map[string]func() error{
			"master call": func() error { _, err := operator.NewMaster(addr).Call(timeout(t), getHealth); return err },
			"master get":  func() error { _, err := operator.NewMaster(addr).Get(timeout(t), "/version"); return err },
			"agent call": func() error {
				_, err := operator.NewAgent(addr).Call(timeout(t), &agentv1.Call{Type: agentv1.Call_GET_HEALTH.Enum()})
				return err
			},
			"agent get": func() error { _, err := operator.NewAgent(addr).Get(timeout(t), "/version"); return err },
		} {
			err := do()
			var status *operator.StatusError
			if !errors.As(err, &status) || status.Code != test.code || err.Error() != test.want {
				t.Errorf("%s = %v, want %q with code %d", name, err, test.want, test.code)
			}
		}
	}
}

func TestAServerThatIsNotThereIsNamedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, call := operator.NewMaster(addr).Call(timeout(t), getHealth)
	_, get := operator.NewAgent(addr).Get(timeout(t), "/version")
	for name, err := range map[string]error{"master": call, "agent": get} {
		var op *net.OpError
		want := fmt.Sprintf("reach the %s at %s: dial tcp %s: connect: connection refused", name, addr, addr)
		if !errors.As(err, &op) || err.Error() != want {
			t.Errorf("%s: %v, want a *net.OpError that reads %q", name, err, want)
		}
		var status *operator.StatusError
		if errors.As(err, &status) {
			t.Errorf("%s: %v is a refusal, want it to be none", name, err)
		}
	}
}

func TestASlowServerIsLeftWithTheContext(t *testing.T) {
	released := make(chan struct{})
	defer close(released)
	addr := listen(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-released:
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := operator.NewMaster(addr).Call(ctx, getHealth); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), addr) {
		t.Errorf("Call = %v, want the deadline and the address", err)
	}
}

func TestAnAnswerThatIsNoneIsAnError(t *testing.T) {
	addr := listen(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>\xff") })
	if _, err := operator.NewMaster(addr).Call(timeout(t), getHealth); err == nil || !strings.Contains(err.Error(), "decode answer of master "+addr) {
		t.Errorf("Call = %v, want an error that names the master", err)
	}
	if data, err := operator.NewMaster(addr).Get(timeout(t), "/"); err != nil || !strings.HasPrefix(string(data), "<html>") {
		t.Errorf("Get = %q, %v; want the body as it is", data, err)
	}
	cut := listen(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "short")
	})
	if _, err := operator.NewMaster(cut).Call(timeout(t), getHealth); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Call with half an answer = %v, want unexpected EOF", err)
	}
	if _, err := operator.NewMaster("not an address").Call(timeout(t), getHealth); err == nil || !strings.Contains(err.Error(), "not an address") {
		t.Errorf("Call at no address = %v, want it named", err)
	}
}
