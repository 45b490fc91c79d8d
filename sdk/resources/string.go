package resources

import (
	"strconv"
	"strings"

	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
)

// String returns the form used in logs and in legacy endpoints: "cpus:1; mem:32".
func (s Set) String() string {
	var b strings.Builder
	for i := range s.entries {
		if i > 0 {
			b.WriteString("; ")
		}
		s.entries[i].write(&b)
	}
	return b.String()
}

// String returns the entry as Mesos writes it:
// "disk(allocated: eng)(reservations: [(DYNAMIC,eng,ann)])[db:data]:64".
func (e *Entry) String() string {
	var b strings.Builder
	e.write(&b)
	return b.String()
}

func (e *Entry) write(b *strings.Builder) {
	b.WriteString(e.id.name)
	if e.alloc != "" {
		b.WriteString("(allocated: " + e.alloc + ")")
	}
	if len(e.id.reservations) > 0 {
		b.WriteString("(reservations: [")
		for i, r := range e.id.reservations {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString("(" + r.GetType().String() + "," + r.GetRole())
			if r.Principal != nil {
				b.WriteString("," + r.GetPrincipal())
			}
			if r.Labels != nil {
				b.WriteString("," + labelsString(r.Labels))
			}
			b.WriteByte(')')
		}
		b.WriteString("])")
	}
	if d := e.Disk(); d != nil {
		b.WriteString("[" + diskString(d) + "]")
	}
	if e.id.revocable {
		b.WriteString("{REV}")
	}
	if e.id.shared {
		b.WriteString("<SHARED>")
	}
	b.WriteByte(':')
	switch e.id.kind {
	case mesosv1.Value_SCALAR:
		b.WriteString(formatScalar(fromMilli(e.milli)))
	case mesosv1.Value_RANGES:
		b.WriteString(e.ranges.String())
	case mesosv1.Value_SET:
		b.WriteString("{" + strings.Join(e.items, ", ") + "}")
	}
	if e.copies > 1 {
		b.WriteString("<" + strconv.Itoa(e.copies) + ">")
	}
}

// String returns "[1-2, 5-9]".
func (rs Ranges) String() string {
	b := []byte{'['}
	for i, r := range rs {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendUint(b, r.Begin, 10)
		b = append(b, '-')
		b = strconv.AppendUint(b, r.End, 10)
	}
	return string(append(b, ']'))
}

func labelsString(l *mesosv1.Labels) string {
	parts := make([]string, 0, len(l.GetLabels()))
	for _, x := range l.GetLabels() {
		part := x.GetKey()
		if x.Value != nil {
			part += ": " + x.GetValue()
		}
		parts = append(parts, part)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// diskString returns "SOURCE,VOLUME", where a source is "MOUNT(vendor,id,profile):root" and a
// volume "id:container path[:host path]".
func diskString(d *mesosv1.Resource_DiskInfo) string {
	var parts []string
	if s := d.Source; s != nil {
		part := s.GetType().String()
		if s.Vendor != nil || s.Id != nil || s.Profile != nil {
			part += "(" + s.GetVendor() + "," + s.GetId() + "," + s.GetProfile() + ")"
		}
		if root := s.GetPath().GetRoot() + s.GetMount().GetRoot(); root != "" {
			part += ":" + root
		}
		parts = append(parts, part)
	}
	if d.Persistence != nil {
		part := d.Persistence.GetId()
		if v := d.Volume; v != nil {
			part += ":" + v.GetContainerPath()
			if v.HostPath != nil {
				part += ":" + v.GetHostPath()
			}
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}
