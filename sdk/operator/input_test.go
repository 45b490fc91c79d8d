package operator

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	"github.com/mosaic-cluster/mosaic/sdk/recordio"
)

func TestInputThatHasNothingToSayBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := newInput()
		var body bytes.Buffer
		fed := make(chan error, 1)
		go func() { fed <- in.feed(&mesosv1.ContainerID{Value: new("c")}, &body) }()
		time.Sleep(2*heartbeatInterval + time.Second) // of the bubble's clock
		for rows := range 5 {
			if err := in.resize(uint16(rows+1), 80); err != nil {
				t.Errorf("resize = %v", err)
			}
		}
		synctest.Wait()
		close(in.detach)
		if err := <-fed; err != nil {
			t.Errorf("feed = %v, want the body's end", err)
		}
		var beats, rows uint32
		r := recordio.NewReader(&body, 0)
		for record, err := r.Next(); err == nil; record, err = r.Next() {
			call := &agentv1.Call{}
			if err := call.UnmarshalVT(record); err != nil {
				t.Fatal(err)
			}
			c := call.GetAttachContainerInput().GetProcessIo().GetControl()
			if c.GetType() == agentv1.ProcessIO_Control_HEARTBEAT && c.GetHeartbeat().GetInterval().GetNanoseconds() == int64(heartbeatInterval) {
				beats++
			}
			if w := c.GetTtyInfo().GetWindowSize(); w != nil {
				rows = w.GetRows()
			}
		}
		if beats != 2 || rows != 5 {
			t.Errorf("%d heartbeats and a window of %d rows, want 2 and the last size, 5", beats, rows)
		}
	})
}
