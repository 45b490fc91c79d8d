package api_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/api"
	"github.com/mosaic-cluster/mosaic/core/api/codec"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

// inputRecord is one record of an upload.
func inputRecord(t testing.TB, mt codec.Type, in *agentv1.Call_AttachContainerInput) string {
	b, err := codec.Append(mt, nil, &agentv1.Call{Type: agentv1.Call_ATTACH_CONTAINER_INPUT.Enum(), AttachContainerInput: in})
	if err != nil {
		t.Fatal(err)
	}
	return string(recordio.Append(nil, b))
}

func named(id *mesosv1.ContainerID) *agentv1.Call_AttachContainerInput {
	return &agentv1.Call_AttachContainerInput{Type: agentv1.Call_AttachContainerInput_CONTAINER_ID.Enum(), ContainerId: id}
}

func said(m *agentv1.ProcessIO) *agentv1.Call_AttachContainerInput {
	return &agentv1.Call_AttachContainerInput{Type: agentv1.Call_AttachContainerInput_PROCESS_IO.Enum(), ProcessIo: m}
}

func dataOf(kind agentv1.ProcessIO_Data_Type, text string) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum(), Data: &agentv1.ProcessIO_Data{Type: kind.Enum(), Data: []byte(text)}}
}

func windowOf(rows, columns uint32) *agentv1.ProcessIO {
	return &agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{
		Type:    agentv1.ProcessIO_Control_TTY_INFO.Enum(),
		TtyInfo: &mesosv1.TTYInfo{WindowSize: &mesosv1.TTYInfo_WindowSize{Rows: proto.Uint32(rows), Columns: proto.Uint32(columns)}},
	}}
}

func TestInputIsValidatedRecordByRecord(t *testing.T) {
	a := newContainerAgent()
	server := serveContainers(t, a)
	heartbeat := &agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(), Control: &agentv1.ProcessIO_Control{
		Type: agentv1.ProcessIO_Control_HEARTBEAT.Enum(), Heartbeat: &agentv1.ProcessIO_Control_Heartbeat{Interval: &mesosv1.DurationInfo{Nanoseconds: proto.Int64(1)}},
	}}
	stdin := agentv1.ProcessIO_Data_STDIN
	for _, mt := range bothTypes {
		for what, c := range map[string]struct {
			records []*agentv1.Call_AttachContainerInput
			status  int
		}{
			"nothing more":            {nil, 200},
			"data":                    {[]*agentv1.Call_AttachContainerInput{said(dataOf(stdin, "x"))}, 200},
			"end of data":             {[]*agentv1.Call_AttachContainerInput{said(dataOf(stdin, ""))}, 200},
			"heartbeat":               {[]*agentv1.Call_AttachContainerInput{said(heartbeat)}, 200},
			"window":                  {[]*agentv1.Call_AttachContainerInput{said(windowOf(24, 80))}, 200},
			"a window without end":    {[]*agentv1.Call_AttachContainerInput{said(windowOf(1<<16, 80))}, 400},
			"a second container":      {[]*agentv1.Call_AttachContainerInput{named(nested("other"))}, 400},
			"the container once more": {[]*agentv1.Call_AttachContainerInput{said(dataOf(stdin, "x")), named(nested("root"))}, 400},
			"output":                  {[]*agentv1.Call_AttachContainerInput{said(dataOf(agentv1.ProcessIO_Data_STDOUT, "x"))}, 400},
			"data of no type":         {[]*agentv1.Call_AttachContainerInput{said(&agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum(), Data: &agentv1.ProcessIO_Data{Data: []byte("x")}})}, 400},
			"no data":                 {[]*agentv1.Call_AttachContainerInput{said(&agentv1.ProcessIO{Type: agentv1.ProcessIO_DATA.Enum()})}, 400},
			"no control":              {[]*agentv1.Call_AttachContainerInput{said(&agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum()})}, 400},
			"no process io":           {[]*agentv1.Call_AttachContainerInput{said(nil)}, 400},
			"no type":                 {[]*agentv1.Call_AttachContainerInput{said(&agentv1.ProcessIO{})}, 400},
			"a heartbeat of nothing": {[]*agentv1.Call_AttachContainerInput{said(&agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(),
				Control: &agentv1.ProcessIO_Control{Type: agentv1.ProcessIO_Control_HEARTBEAT.Enum()}})}, 400},
			"a window of nothing": {[]*agentv1.Call_AttachContainerInput{said(&agentv1.ProcessIO{Type: agentv1.ProcessIO_CONTROL.Enum(),
				Control: &agentv1.ProcessIO_Control{Type: agentv1.ProcessIO_Control_TTY_INFO.Enum()}})}, 400},
		} {
			body := inputRecord(t, mt, named(nested("root")))
			for _, r := range c.records {
				body += inputRecord(t, mt, r)
			}
			resp, text := do(t, request(t, "POST", server.URL+"/api/v1", body, "Content-Type: application/recordio", "Message-Content-Type: "+mt.String()))
			if resp.StatusCode != c.status {
				t.Errorf("%v %s: %d %q, want %d", mt, what, resp.StatusCode, text, c.status)
			}
			for len(a.fed) > 0 {
				<-a.fed
			}
		}
		for path, want := range map[string]int{"forbidden": 403, "unknown": 404, "files": 500, "broken": 500} {
			body := inputRecord(t, mt, named(nested(path)))
			if resp, text := do(t, request(t, "POST", server.URL+"/api/v1", body, "Content-Type: application/recordio", "Message-Content-Type: "+mt.String())); resp.StatusCode != want {
				t.Errorf("%v %s: %d %q, want %d", mt, path, resp.StatusCode, text, want)
			}
		}
	}
	if fmt.Sprint(a.windows) != "[24x80 24x80]" {
		t.Errorf("windows = %v", a.windows)
	}
}

// An upload that goes on for ever is answered as soon as there is something to say.
func TestAnOpenUploadIsAnsweredWhenItsContainerIsMissingOrEnds(t *testing.T) {
	a := newContainerAgent()
	server := serveContainers(t, a)
	send := func(path string) (status chan int, upload *io.PipeWriter) {
		body, upload := io.Pipe()
		r := request(t, "POST", server.URL+"/api/v1", "", "Content-Type: application/recordio", "Message-Content-Type: application/json")
		r.Body, r.ContentLength = body, -1
		status = make(chan int, 1)
		go func() {
			resp, err := (&http.Transport{}).RoundTrip(r)
			if err != nil {
				t.Error(err)
				status <- 0
				return
			}
			resp.Body.Close()
			status <- resp.StatusCode
		}()
		fmt.Fprint(upload, inputRecord(t, codec.JSON, named(nested(path))))
		return status, upload
	}
	began := time.Now()
	missing, upload := send("unknown")
	defer upload.Close()
	if got := <-missing; got != 404 {
		t.Errorf("an unknown container: %d, want 404", got)
	}
	there, upload := send("root")
	defer upload.Close()
	fmt.Fprint(upload, inputRecord(t, codec.JSON, said(dataOf(agentv1.ProcessIO_Data_STDIN, "ls"))))
	if got := <-a.fed; got != "ls" {
		t.Errorf("the container got %q", got)
	}
	close(a.ended)
	if got := <-there; got != 200 {
		t.Errorf("a container that ended: %d, want 200", got)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("the answers took %v", d)
	}
}

// What attach clients may send: nothing of it may harm the server, nor be answered with a 500.
func FuzzAttachInput(f *testing.F) {
	for _, mt := range bothTypes {
		first := inputRecord(f, mt, named(nested("root")))
		second := inputRecord(f, mt, said(dataOf(agentv1.ProcessIO_Data_STDIN, "x")))
		window := inputRecord(f, mt, said(windowOf(24, 80)))
		whole := first + second + window
		for _, seed := range []string{
			"", first, whole, first + first, second + first, first + inputRecord(f, mt, named(nested("other"))), whole[:len(whole)-1], first[1:],
			"99999999999\n" + first, "1048577\n", "-1\n", "0\n", "0\n0\n" + whole, first + "0\n", first + "18446744073709551616\n", first + "3\nabc",
			inputRecord(f, mt, named(nested(strings.Repeat("x", 243)))), inputRecord(f, mt, named(nested("a", "..", "b"))),
			inputRecord(f, mt, nil), inputRecord(f, mt, said(nil)), first + inputRecord(f, mt, said(&agentv1.ProcessIO{})),
		} {
			f.Add(seed, mt == codec.JSON)
		}
	}
	random := rand.New(rand.NewPCG(5, 2026))
	whole := inputRecord(f, codec.Protobuf, named(nested("root"))) + inputRecord(f, codec.Protobuf, said(dataOf(agentv1.ProcessIO_Data_STDIN, "x")))
	for range 200 {
		b := []byte(whole)
		for range 1 + random.IntN(3) {
			b[random.IntN(len(b))] = byte(random.IntN(256))
		}
		f.Add(string(b), false)
	}
	f.Fuzz(func(t *testing.T, body string, json bool) {
		a := newContainerAgent()
		a.fed = make(chan string, len(body)+1)
		edge := api.NewAgent(testConfig(t), api.AgentDeps{Agent: a, ContainerIO: a})
		mt := codec.Protobuf
		if json {
			mt = codec.JSON
		}
		r := httptest.NewRequest("POST", "/api/v1", bytes.NewReader([]byte(body)))
		r.Header.Set("Content-Type", "application/recordio")
		r.Header.Set("Message-Content-Type", mt.String())
		w := httptest.NewRecorder()
		edge.ServeHTTP(w, r)
		if w.Code != 200 && (w.Code < 400 || w.Code > 499) {
			t.Errorf("%q: %d %q", body, w.Code, w.Body)
		}
	})
}
