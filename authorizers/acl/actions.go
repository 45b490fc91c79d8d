package acl

// object is what the values of a list name.
type object int

const (
	roles      object = iota // with "a/%" for everything below a
	users                    // of the task, the executor or the framework, in this order of preference
	principals               // who made the thing
	paths                    // of an endpoint
	nothing                  // the action has no object with a name: only ANY and NONE mean something
)

// list is one kind of list: its name in Mesos's acls.proto and the name of the field with its objects.
type list struct {
	name, field string
	object      object
}

// action is one action with the list that decides it. parent, if there, must agree too, asked about the parent
// container's user.
type action struct {
	name         string
	list, parent list
}

// actions are all of Mesos's (include/mesos/authorizer/authorizer.proto and acls.proto there, 1.11).
func actions() []action {
	one := func(called, name, field string, o object) action {
		return action{name: called, list: list{name, field, o}}
	}
	return []action{
		one("REGISTER_FRAMEWORK", "register_frameworks", "roles", roles),
		one("RUN_TASK", "run_tasks", "users", users),
		one("TEARDOWN_FRAMEWORK", "teardown_frameworks", "framework_principals", principals),
		one("RESERVE_RESOURCES", "reserve_resources", "roles", roles),
		one("UNRESERVE_RESOURCES", "unreserve_resources", "reserver_principals", principals),
		one("CREATE_VOLUME", "create_volumes", "roles", roles),
		one("DESTROY_VOLUME", "destroy_volumes", "creator_principals", principals),
		one("RESIZE_VOLUME", "resize_volumes", "roles", roles),
		one("CREATE_BLOCK_DISK", "create_block_disks", "roles", roles),
		one("DESTROY_BLOCK_DISK", "destroy_block_disks", "roles", roles),
		one("CREATE_MOUNT_DISK", "create_mount_disks", "roles", roles),
		one("DESTROY_MOUNT_DISK", "destroy_mount_disks", "roles", roles),
		one("DESTROY_RAW_DISK", "destroy_raw_disks", "roles", roles),
		one("GET_ENDPOINT_WITH_PATH", "get_endpoints", "paths", paths),
		one("VIEW_ROLE", "view_roles", "roles", roles),
		one("UPDATE_WEIGHT", "update_weights", "roles", roles),
		one("GET_QUOTA", "get_quotas", "roles", roles),
		one("UPDATE_QUOTA", "update_quotas", "roles", roles),
		one("UPDATE_QUOTA_WITH_CONFIG", "update_quotas", "roles", roles),
		one("VIEW_FRAMEWORK", "view_frameworks", "users", users),
		one("VIEW_TASK", "view_tasks", "users", users),
		one("VIEW_EXECUTOR", "view_executors", "users", users),
		one("ACCESS_SANDBOX", "access_sandboxes", "users", users),
		one("VIEW_CONTAINER", "view_containers", "users", users),
		one("KILL_NESTED_CONTAINER", "kill_nested_containers", "users", users),
		one("WAIT_NESTED_CONTAINER", "wait_nested_containers", "users", users),
		one("REMOVE_NESTED_CONTAINER", "remove_nested_containers", "users", users),
		one("ATTACH_CONTAINER_INPUT", "attach_containers_input", "users", users),
		one("ATTACH_CONTAINER_OUTPUT", "attach_containers_output", "users", users),
		{"LAUNCH_NESTED_CONTAINER", list{"launch_nested_containers_as_user", "users", users},
			list{"launch_nested_containers_under_parent_with_user", "users", users}},
		{"LAUNCH_NESTED_CONTAINER_SESSION", list{"launch_nested_container_sessions_as_user", "users", users},
			list{"launch_nested_container_sessions_under_parent_with_user", "users", users}},
		one("LAUNCH_STANDALONE_CONTAINER", "launch_standalone_containers", "users", users),
		one("KILL_STANDALONE_CONTAINER", "kill_standalone_containers", "users", users),
		one("WAIT_STANDALONE_CONTAINER", "wait_standalone_containers", "users", users),
		one("REMOVE_STANDALONE_CONTAINER", "remove_standalone_containers", "users", users),
		one("VIEW_STANDALONE_CONTAINER", "view_standalone_containers", "users", users),
		one("ACCESS_MESOS_LOG", "access_mesos_logs", "logs", nothing),
		one("VIEW_FLAGS", "view_flags", "flags", nothing),
		one("SET_LOG_LEVEL", "set_log_level", "level", nothing),
		one("REGISTER_AGENT", "register_agents", "agents", nothing),
		one("UPDATE_MAINTENANCE_SCHEDULE", "update_maintenance_schedules", "machines", nothing),
		one("GET_MAINTENANCE_SCHEDULE", "get_maintenance_schedules", "machines", nothing),
		one("START_MAINTENANCE", "start_maintenances", "machines", nothing),
		one("STOP_MAINTENANCE", "stop_maintenances", "machines", nothing),
		one("GET_MAINTENANCE_STATUS", "get_maintenance_statuses", "machines", nothing),
		one("MARK_AGENT_GONE", "mark_agents_gone", "agents", nothing),
		one("DRAIN_AGENT", "drain_agents", "agents", nothing),
		one("DEACTIVATE_AGENT", "deactivate_agents", "agents", nothing),
		one("REACTIVATE_AGENT", "reactivate_agents", "agents", nothing),
		one("MODIFY_RESOURCE_PROVIDER_CONFIG", "modify_resource_provider_configs", "resource_providers", nothing),
		one("VIEW_RESOURCE_PROVIDER", "view_resource_providers", "resource_providers", nothing),
		one("MARK_RESOURCE_PROVIDER_GONE", "mark_resource_providers_gone", "resource_providers", nothing),
		one("PRUNE_IMAGES", "prune_images", "images", nothing),
	}
}

// implied says by which claim of a principal an action is allowed without any list, and whether the claim is the
// container itself (else a prefix of its id). An executor may handle what runs inside its own container, and a resource
// provider the standalone containers that it names by its prefix.
func implied(action string) (claim string, nested bool) {
	switch action {
	case "LAUNCH_NESTED_CONTAINER", "LAUNCH_NESTED_CONTAINER_SESSION", "KILL_NESTED_CONTAINER", "WAIT_NESTED_CONTAINER",
		"REMOVE_NESTED_CONTAINER", "ATTACH_CONTAINER_INPUT", "ATTACH_CONTAINER_OUTPUT":
		return "cid", true
	case "LAUNCH_STANDALONE_CONTAINER", "KILL_STANDALONE_CONTAINER", "WAIT_STANDALONE_CONTAINER",
		"REMOVE_STANDALONE_CONTAINER", "VIEW_STANDALONE_CONTAINER":
		return "cid_prefix", false
	}
	return "", false
}
