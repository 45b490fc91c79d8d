package modulehost

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A spawner starts processes from one thread that lives as long as the host. The kernel sends the parent-death signal
// when the thread that forked ends, not when the process does, and Go ends threads as it likes; from here it comes
// exactly when the agent dies. The thread also gives its children no_new_privs and, on cgroup version 1, the cgroup
// that they are born in.
type spawner struct {
	requests chan spawnRequest
	done     chan struct{}
}

type spawnRequest struct {
	path   string
	argv   []string
	attr   *os.ProcAttr
	inside []v1Mount // cgroup v1 folders to be born in
	answer chan<- spawnAnswer
}

type spawnAnswer struct {
	process *os.Process
	err     error
}

// newSpawner starts the thread; stop ends it.
func newSpawner() *spawner {
	s := &spawner{requests: make(chan spawnRequest), done: make(chan struct{})}
	go s.run()
	return s
}

// stop ends the thread. All children must be dead: those left would be killed.
func (s *spawner) stop() {
	close(s.requests)
	<-s.done
}

// start starts a process, born inside the given cgroup v1 folders.
func (s *spawner) start(path string, argv []string, attr *os.ProcAttr, inside []v1Mount) (*os.Process, error) {
	answer := make(chan spawnAnswer, 1)
	s.requests <- spawnRequest{path, argv, attr, inside, answer}
	a := <-answer
	return a.process, a.err
}

func (s *spawner) run() {
	// Never unlocked: with no_new_privs set the thread must not serve anything else, so it ends with its goroutine.
	runtime.LockOSThread()
	defer close(s.done)
	// A kernel that refuses leaves the module with the privileges that the agent has, as without it.
	_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	for r := range s.requests {
		p, err := spawnInside(r)
		r.answer <- spawnAnswer{p, err}
	}
}

// spawnInside moves the thread itself into the cgroups while it forks, so that no child can be forked by the module
// before it is inside: what a process may do between its exec and a later move is then no question.
func spawnInside(r spawnRequest) (*os.Process, error) {
	var back []string
	defer func() {
		for _, folder := range back {
			// The place it came from is there as long as the agent runs in it. Should it not take the thread back,
			// the thread stays where it is: it does nothing but fork.
			_ = os.WriteFile(folder+"/tasks", []byte("0"), 0)
		}
	}()
	for _, m := range r.inside {
		home, err := threadHome(m)
		if err != nil {
			return nil, fmt.Errorf("enter cgroup: %w", err)
		}
		if err := os.WriteFile(m.folder+"/tasks", []byte("0"), 0); err != nil {
			return nil, fmt.Errorf("enter cgroup: %w", err)
		}
		back = append(back, home)
	}
	return os.StartProcess(r.path, r.argv, r.attr)
}
