#!/bin/bash
# scripts/verify-backups.sh

set -euo pipefail

BACKUP_DIR="${BACKUP_DIR:-/backups}"
LOG_FILE="${LOG_FILE:-/var/log/kyb-platform/backup-verification.log}"

log() {
    echo "[$(date '+%Y-%m-%d %H:%M:%S')] $1" | tee -a "$LOG_FILE"
}

# Verify database backups
verify_database_backups() {
    log "Verifying database backups..."

    local full_backups=("${BACKUP_DIR}/database/full"/*)
    local failed_backups=()

    for backup_dir in "${full_backups[@]}"; do
        if [[ -d "$backup_dir" ]]; then
            local backup_id=$(basename "$backup_dir")
            local metadata_file="${backup_dir}/backup_metadata.json"
            local backup_file="${backup_dir}/database.sql.gz"

            if [[ -f "$metadata_file" ]] && [[ -f "$backup_file" ]]; then
                # Verify checksum
                local expected_checksum=$(jq -r '.checksum' "$metadata_file")
                local actual_checksum=$(sha256sum "$backup_file" | cut -d' ' -f1)

                if [[ "$expected_checksum" == "$actual_checksum" ]]; then
                    log "✓ Backup $backup_id verified successfully"
                else
                    log "✗ Backup $backup_id checksum mismatch"
                    failed_backups+=("$backup_id")
                fi
            else
                log "✗ Backup $backup_id missing files"
                failed_backups+=("$backup_id")
            fi
        fi
    done

    if [[ ${#failed_backups[@]} -gt 0 ]]; then
        log "ERROR: ${#failed_backups[@]} backups failed verification"
        return 1
    else
        log "All database backups verified successfully"
        return 0
    fi
}

# Test backup restoration
test_backup_restoration() {
    log "Testing backup restoration..."

    # Find the most recent backup
    local latest_backup=$(ls -t "${BACKUP_DIR}/database/full" | head -n1)

    if [[ -z "$latest_backup" ]]; then
        log "ERROR: No backups found for testing"
        return 1
    fi

    local backup_file="${BACKUP_DIR}/database/full/${latest_backup}/database.sql.gz"

    # Create test database
    local test_db="kyb_backup_test_$(date +%s)"

    PGPASSWORD="$DB_PASSWORD" createdb -h "$DB_HOST" -p "$DB_PORT" -U "$DB_USER" "$test_db"

    # Restore backup to test database
    if gunzip -c "$backup_file" | PGPASSWORD="$DB_PASSWORD" psql -h "$DB_HOST" -p "$DB_PORT" -U "$DB_USER" -d "$test_db"; then
        log "✓ Backup restoration test successful"

        # Clean up test database
        PGPASSWORD="$DB_PASSWORD" dropdb -h "$DB_HOST" -p "$DB_PORT" -U "$DB_USER" "$test_db"

        return 0
    else
        log "✗ Backup restoration test failed"

        # Clean up test database
        PGPASSWORD="$DB_PASSWORD" dropdb -h "$DB_HOST" -p "$DB_PORT" -U "$DB_USER" "$test_db" 2>/dev/null || true

        return 1
    fi
}

# Main verification process
main() {
    log "Starting backup verification process"

    if verify_database_backups && test_backup_restoration; then
        log "All backup verifications passed"
        exit 0
    else
        log "Backup verification failed"
        exit 1
    fi
}

main "$@"
