package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// status is how far a job is.
type status string

const (
	waiting  status = "waiting"  // for an offer
	launched status = "launched" // in the master's hands, or about to be
	finished status = "finished"
	givenUp  status = "given up"
)

// job is one command.
type job struct {
	Command string `json:"command"`
	Status  status `json:"status"`
	// Launches counts the tasks that it has had, and Failures those that failed by its own fault.
	Launches int `json:"launches"`
	Failures int `json:"failures"`
	// NotBefore is when it may be tried again.
	NotBefore time.Time `json:"not_before"`

	running bool // the task that was launched runs; not stored, updates say so
}

// state is what survives the program.
type state struct {
	FrameworkID string `json:"framework_id,omitempty"`
	Jobs        []*job `json:"jobs"`

	path string // empty keeps it in memory
}

// maxLine bounds one command.
const maxLine = 64 << 10

// readJobs reads one command per line.
func readJobs(r io.Reader) ([]*job, error) {
	var jobs []*job
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
			jobs = append(jobs, &job{Command: line, Status: waiting})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	if len(jobs) == 0 {
		return nil, errors.New("there are no jobs")
	}
	return jobs, nil
}

// openState takes up what an earlier run has stored for the same jobs.
//
// Errors: what is stored is about other jobs, or cannot be read. The caller names another file, or removes this one.
func openState(path string, jobs []*job) (*state, error) {
	s := &state{Jobs: jobs, path: path}
	if path == "" {
		return s, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.save() // that it cannot be written is better known now
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	stored := &state{path: path}
	if err := json.Unmarshal(data, stored); err != nil {
		return nil, fmt.Errorf("read state %s: %w", path, err)
	}
	if len(stored.Jobs) != len(jobs) {
		return nil, fmt.Errorf("state %s is of %d jobs, want %d: remove it to begin anew", path, len(stored.Jobs), len(jobs))
	}
	for i, j := range stored.Jobs {
		if j == nil || j.Command != jobs[i].Command {
			return nil, fmt.Errorf("state %s is of other jobs than job %d, %q: remove it to begin anew", path, i, jobs[i].Command)
		}
	}
	return stored, nil
}

// stateError says that the state cannot be stored. Going on would lose jobs in the next crash.
type stateError struct{ error }

func (e *stateError) Unwrap() error { return e.error }

// save stores the state; a crash leaves the old or the new one.
//
// Errors: *stateError.
func (s *state) save() error {
	if s.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return &stateError{fmt.Errorf("encode state: %w", err)}
	}
	f, err := os.CreateTemp(filepath.Dir(s.path), filepath.Base(s.path)+".*")
	if err != nil {
		return &stateError{fmt.Errorf("write state: %w", err)}
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.path)
	}
	if err != nil {
		return &stateError{fmt.Errorf("write state: %w", errors.Join(err, os.Remove(f.Name())))}
	}
	return nil
}

// remove forgets the state.
func (s *state) remove() error {
	if s.path == "" {
		return nil
	}
	return os.Remove(s.path)
}

// taskID names a launch of a job, so that an update says which it is about.
func taskID(job, launch int) string { return fmt.Sprintf("job-%d.%d", job, launch) }

// find returns the job that a task is the latest launch of; nil for an older one, and for what is none of ours.
func (s *state) find(task string) (int, *job) {
	var i, launch int
	if n, err := fmt.Sscanf(task, "job-%d.%d", &i, &launch); n != 2 || err != nil || i < 0 || i >= len(s.Jobs) || taskID(i, launch) != task {
		return 0, nil
	}
	if s.Jobs[i].Launches != launch {
		return 0, nil
	}
	return i, s.Jobs[i]
}

// count returns how many jobs have a status.
func (s *state) count(is status) int {
	n := 0
	for _, j := range s.Jobs {
		if j.Status == is {
			n++
		}
	}
	return n
}
