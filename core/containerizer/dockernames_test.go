package containerizer

import (
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestNamesThatAreAskedForTakeTheNetworksPlace(t *testing.T) {
	const have = "# made by hand\ndomain old.example\nsearch a.example b.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:1\nsortlist 10.0.0.0\n"
	for _, test := range []struct {
		params []string
		want   string
	}{
		{[]string{"dns", "8.8.8.8", "dns", "2001:db8::1"},
			"# made by hand\ndomain old.example\nsearch a.example b.example\noptions ndots:1\nsortlist 10.0.0.0\nnameserver 8.8.8.8\nnameserver 2001:db8::1\n"},
		{[]string{"dns-search", "c.example", "dns-search", "d.example"},
			"# made by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:1\nsortlist 10.0.0.0\nsearch c.example d.example\n"},
		{[]string{"dns-search", "."}, "# made by hand\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:1\nsortlist 10.0.0.0\n"},
		{[]string{"dns-option", "ndots:3", "dns-opt", "rotate"},
			"# made by hand\ndomain old.example\nsearch a.example b.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsortlist 10.0.0.0\noptions ndots:3 rotate\n"},
	} {
		var n dockerNames
		for i := 0; i < len(test.params); i += 2 {
			if known, err := n.parameter(test.params[i], test.params[i+1]); !known || err != nil {
				t.Fatalf("parameter(%s, %s) = %v, %v", test.params[i], test.params[i+1], known, err)
			}
		}
		if diff := cmp.Diff(test.want, string(n.resolv([]byte(have)))); diff != "" {
			t.Errorf("resolv with %v (-want +got):\n%s", test.params, diff)
		}
	}
}

func TestHostsThatAreAskedForAreAdded(t *testing.T) {
	var n dockerNames
	for _, value := range []string{"db:10.0.0.7", "six:2001:db8::1", "new=[::1]"} {
		if known, err := n.parameter("add-host", value); !known || err != nil {
			t.Fatalf("parameter(add-host, %s) = %v, %v", value, known, err)
		}
	}
	const added = "10.0.0.7\tdb\n2001:db8::1\tsix\n::1\tnew\n"
	for have, want := range map[string]string{"": noHosts + added, "127.0.0.1 localhost": "127.0.0.1 localhost\n" + added} {
		if diff := cmp.Diff(want, string(n.withHosts([]byte(have)))); diff != "" {
			t.Errorf("withHosts(%q) (-want +got):\n%s", have, diff)
		}
	}
}

func TestSignalsHaveTheNamesThatImagesGiveThem(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"SIGQUIT": syscall.SIGQUIT, "quit": syscall.SIGQUIT, "3": syscall.SIGQUIT, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMIN": 34,
		"": 0, "SIG": 0, "0": 0, "65": 0, "-1": 0, "SIGRTMIN+31": 0, "SIGRTMIN-1": 0, "RTMAX+1": 0, "RTMIN3": 0, "RTMIN+": 0,
	} {
		got, ok := signalNamed(text)
		if ok != (want != 0) || ok && got != want {
			t.Errorf("signalNamed(%q) = %d, %v, want %d", text, got, ok, want)
		}
	}
}

func TestContainerIsAskedToEndByItsOwnSignal(t *testing.T) {
	for _, test := range []struct {
		own       string
		sig, want syscall.Signal
	}{
		{"SIGQUIT", syscall.SIGTERM, syscall.SIGQUIT},
		{"SIGQUIT", syscall.SIGUSR1, syscall.SIGUSR1},
		{"", syscall.SIGTERM, syscall.SIGTERM},
		{"nonsense", syscall.SIGTERM, syscall.SIGTERM},
	} {
		ct := newContainer(&containerv1.Container{Id: "c", ImageConfig: &containerv1.ImageConfig{StopSignal: test.own}})
		if got := ct.stopSignal(test.sig); got != test.want {
			t.Errorf("stopSignal(%v) with %q = %v, want %v", test.sig, test.own, got, test.want)
		}
	}
}

func TestStopSignalOfAnImageCountsForTypeDockerOnly(t *testing.T) {
	image := &containerv1.ImageConfig{StopSignal: "SIGQUIT", User: "u"}
	for want, w := range map[string]*dockerWish{"": nil, "SIGQUIT": {}, "SIGHUP": {stopSignal: "SIGHUP"}} {
		if got := w.configOf(image); got.GetStopSignal() != want || got.GetUser() != "u" {
			t.Errorf("configOf with %+v: got %v, want stop signal %q", w, got, want)
		}
	}
	if image.GetStopSignal() != "SIGQUIT" {
		t.Errorf("the image: got %v, want it as it was", image)
	}
}
