package cni

import "testing"

func TestRulesOfAContainerAreFoundInATable(t *testing.T) {
	const table = `*nat
:CNI-196de539df5793ae5035cb1e - [0:0]
:CNI-2e9a31c2feeacd6293051627 - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -s 10.88.0.130/32 -m comment --comment "name: \"mosaic\" id: \"mine\"" -j CNI-2e9a31c2feeacd6293051627
-A CNI-2e9a31c2feeacd6293051627 -d 10.88.0.0/16 -m comment --comment "name: \"mosaic\" id: \"mine\"" -j ACCEPT
-A CNI-196de539df5793ae5035cb1e -d 10.88.0.0/16 -m comment --comment "name: \"mosaic\" id: \"another\"" -j ACCEPT
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"mosaic\" id: \"mine\"" -m multiport --dports 31080 -j CNI-DN-84afdaea9ff3f97a1bf96
-A CNI-DN-84afdaea9ff3f97a1bf96 -p tcp -m tcp --dport 31080 -j DNAT --to-destination 10.88.0.130:80
COMMIT
`
	const want = `*nat
-D POSTROUTING -s 10.88.0.130/32 -m comment --comment "name: \"mosaic\" id: \"mine\"" -j CNI-2e9a31c2feeacd6293051627
-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"mosaic\" id: \"mine\"" -m multiport --dports 31080 -j CNI-DN-84afdaea9ff3f97a1bf96
-F CNI-2e9a31c2feeacd6293051627
-F CNI-DN-84afdaea9ff3f97a1bf96
-X CNI-2e9a31c2feeacd6293051627
-X CNI-DN-84afdaea9ff3f97a1bf96
COMMIT
`
	if got := sweepScript(table, "mine"); got != want {
		t.Errorf("sweepScript = %s\nwant %s", got, want)
	}
	if got := sweepScript(table, "min"); got != "" {
		t.Errorf("sweepScript of a container without rules = %s", got)
	}
}
